import CShims
import Glibc
import KernelABI
import Numbers
import Ring
import Sandbox
import SystemCalls
import WorkerProtocol

/// The start of a worker, step by step (docs/design.md §3). Every step may fail, and then the worker says why and ends.
///
/// The worker's program takes all of them, in the order of `becomeWorker`. They are visible in the package so that the
/// programs of Tests/escape can try things between them, or leave one out, and be everything else that a worker is.
package struct WorkerStart {
    package let launch: LaunchMessage
    package let bundle: SandboxBundle
    private let kernel: KernelVersion
    private let began = TickClock.Reading.now()
    /// What the broker will be told of the walls that it can't see.
    package private(set) var report: SealReport = []

    /// Takes the launch message.
    package init() throws(WorkerFailure) {
        launch = try Control.receiveLaunch()
        bundle = try Control.readBundle()
        // Stage A has no uname(2).
        kernel = KernelVersion.running()
    }

    /// What the queues' rings may do: what the broker's policy lets them, less what this target's file has no use for.
    package func seal(for target: OpenTarget) -> RingSeal {
        RingSeal(
            operations: bundle.ringOperations.filter { !target.unneeded.contains($0) },
            registerOperations: bundle.ringRegisterOperations,
            flagsAllowed: bundle.ringFlagsAllowed, flagsRequired: bundle.ringFlagsRequired)
    }

    /// Nothing that this process has touched once is ever swapped out or dropped, its program included: to get that back it
    /// might need the very disk that it serves, and memory that only its own writes can free. Costs nothing at once. The
    /// launcher's limit allows it; the report tells when something does not.
    package mutating func lockMemory() {
        if mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0 { report.insert(.lockedMemory) }
    }

    // Before the first touch of anything that comes from the client.

    /// Landlock.
    package mutating func denyFiles() throws(WorkerFailure) {
        do {
            if try Landlock.denyEverything() { report.insert(.landlock) }
        } catch {
            throw WorkerFailure(.landlock, errno: error.errno)
        }
    }

    /// Stage A.
    package func loadSetupFilter() throws(WorkerFailure) {
        try load(bundle.setupFilter, .setupFilter)
    }

    /// Takes the client's files and opens the target on them.
    package func openTarget() throws(WorkerFailure) -> OpenTarget {
        // A broker of an earlier version has policies without it, and none of the system calls that go with it.
        let canWait = bundle.ringOperations.contains(IOUring.Operation.futexWait)
        return try launch.target.open(
            launch, files: try ClientFiles.peek(launch), kernel: kernel, canWait: canWait)
    }

    /// Tells the broker what disk it will be, and waits until the kernel knows.
    package func announce(_ target: OpenTarget) throws(WorkerFailure) -> ServeMessage {
        if let limit = target.fileSizeLimit {
            do { try setLimit(.fileSize, to: limit) } catch { throw WorkerFailure(.geometry, errno: error.errno) }
        }
        var geometry = target.geometry
        geometry.version = PackedVersion.pack(workerVersion)
        Control.say(.geometry(geometry))
        return try Control.waitForServe()
    }

    /// The address of the page that the queues' counters are published in. It stays mapped for good.
    private func mapStatistics() throws(WorkerFailure) -> UInt {
        let bytes = StatisticsPage.bytes(queues: Int(launch.queues))
        let memory = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, WorkerDescriptor.statistics, 0)
        guard let memory, memory != MAP_FAILED else {
            throw WorkerFailure(.memory, errno: errno, detail: UInt64(WorkerDescriptor.statistics))
        }
        return UInt(bitPattern: memory)
    }

    /// What takes the time of requests once this process is sealed, which then has no call that tells it.
    private func calibrateClock() -> TickClock {
        guard launch.flags.contains(.steadyTicks) else { return .none }
        var now = TickClock.Reading.now()
        if now.nanoseconds - began.nanoseconds < TickClock.shortest {
            var pause = timespec(tv_sec: 0, tv_nsec: Int(TickClock.shortest))
            nanosleep(&pause, nil)
            now = TickClock.Reading.now()
        }
        return TickClock(began, now)
    }

    /// The files of each queue's ring: /dev/ublkcN, then the target's; where zeros come from has the same place for all.
    package func fileTable(of target: OpenTarget) throws(WorkerFailure) -> [Int32] {
        try QueueAssignment.fileTable(target.files, zeroCopy: launch.flags.contains(.zeroCopy))
    }

    /// Starts the threads of all queues; each makes its ring, with that seal, and waits.
    package func startQueues(
        _ target: OpenTarget, _ serve: ServeMessage, seal: RingSeal?
    ) throws(WorkerFailure) -> Rendezvous {
        // One arena: those of threads are made with mmap, at their first allocation.
        mallopt(M_ARENA_MAX, 1)
        let rendezvous = Rendezvous(queues: Int(launch.queues), helpers: target.ranges == nil ? 0 : 1)
        var board: RangeBoard?
        if let work = target.ranges {
            let made: RangeBoard
            do { made = try RangeBoard(queues: launch.queues, depth: launch.depth) } catch {
                throw WorkerFailure(.memory, errno: error.errno)
            }
            try RangeThread.start(made, work, rendezvous)
            board = made
        }
        let files = try fileTable(of: target)
        let statistics = try mapStatistics()
        let clock = calibrateClock()
        for number in 0..<launch.queues {
            try QueueThread.start(
                QueueAssignment(
                    number: number, depth: launch.depth, maxIOBytes: launch.maxIOBytes, target: target.served,
                    zeroCopy: launch.flags.contains(.zeroCopy), batch: launch.flags.contains(.batch), files: files,
                    processors: serve.processors(ofQueue: Int(number)), seal: seal,
                    legacyOpcodes: launch.flags.contains(.legacyOpcodes),
                    statistics: statistics + UInt(number) * UInt(StatisticsPage.stride), clock: clock, board: board,
                    rendezvous: rendezvous))
        }
        return rendezvous
    }

    /// Waits until the queues' rings are sealed and probed, and makes the main thread's own: the one in which it sleeps
    /// when its socket is dead, where nothing is allowed. After it no thread makes another where the kernel can see to that.
    package mutating func sealRings(of rendezvous: Rendezvous) throws(WorkerFailure) -> Ring {
        try rendezvous.waitUntilPrepared()
        let nothing = RingSeal(
            operations: [], registerOperations: [UInt8(IOUring.Register.enableRings)], flagsAllowed: 0,
            flagsRequired: 0)
        let idle = try SealedRing.make(queue: .max, entries: 1, tables: SealedRing.Tables(), seal: nothing)
        let ringless: Bool
        do { ringless = try forbidFutureRings() } catch {
            throw WorkerFailure(.ringSeal, errno: error.errno, detail: .max)
        }
        report.insert(.rings)
        if rendezvous.helpers > 0 { report.insert(.rangeThread) }
        if ringless && !rendezvous.someQueueCanMakeRings { report.insert(.futureRings) }
        return idle
    }

    /// Lets all queues fetch, now that all of them can, and waits until they have. (For a test: only the first `count`.)
    package func fetch(_ rendezvous: Rendezvous, count: Int? = nil) throws(WorkerFailure) {
        rendezvous.letFetch(count)
        try rendezvous.waitUntilServing(count)
    }

    /// From here on no call can make a descriptor.
    package func giveUpNewFiles() throws(WorkerFailure) {
        do { try setLimit(.openFiles, to: 0) } catch { throw WorkerFailure(.loopFilter, errno: error.errno) }
    }

    /// Stage B.
    package func loadLoopFilter() throws(WorkerFailure) {
        try load(bundle.loopFilter, .loopFilter)
    }

    private func load(_ filter: [UInt64], _ step: WorkerFailure.Step) throws(WorkerFailure) {
        do { try SystemCallFilter(instructions: filter).installOnAllThreads() } catch {
            throw WorkerFailure(step, errno: error.errno)
        }
    }
}
