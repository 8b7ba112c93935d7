import CShims
import Glibc
import KernelABI
import Numbers
import Ring
import Sandbox
import SystemCalls
import WorkerProtocol

/// The start of a worker, step by step (docs/design.md §3). Each step may fail; then the worker reports why and ends.
///
/// The worker's program takes all steps, in the order of `becomeWorker`. They are visible in the package so that the
/// programs of Tests/escape can try attacks between them, or leave one out, and otherwise behave as a worker.
package struct WorkerStart {
    package let launch: LaunchMessage
    package let bundle: SandboxBundle
    private let kernel: KernelVersion
    private let began = TickClock.Reading.now()
    /// The report to the broker about the walls that it cannot see.
    package private(set) var report: SealReport = []

    /// Takes the launch message.
    package init() throws(WorkerFailure) {
        launch = try Control.receiveLaunch()
        bundle = try Control.readBundle()
        // Stage A does not allow uname(2).
        kernel = KernelVersion.running()
        // A library looks for files of its own: there are none in the worker's empty root, and no filter yet to kill it.
        launch.target.loadLibraries()
    }

    /// The seal of the queues' rings: the operations of the broker's policy, less those that this target's file does
    /// not need.
    package func seal(for target: OpenTarget) -> RingSeal {
        var seal = bundle.ring
        seal.operations.removeAll { target.unneeded.contains($0) }
        return seal
    }

    /// Memory that this process has touched, its program included, is never swapped out or dropped: to get it back the
    /// process might need the very disk that it serves, and memory that only its own writes can free. This costs
    /// nothing at once. The launcher's limit allows it; the report says when it failed.
    package mutating func lockMemory() {
        if mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0 { report.insert(.lockedMemory) }
    }

    // Before the first access to anything from the client.

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
        // The policies of an earlier broker lack this operation, and the system calls that belong to it.
        let canWait = bundle.ring.operations.contains(IOUring.Operation.futexWait)
        return try launch.target.open(
            launch, files: try ClientFiles.peek(launch), kernel: kernel, canWait: canWait)
    }

    /// Reports the geometry to the broker, and waits until the kernel has it.
    package func announce(_ target: OpenTarget) throws(WorkerFailure) -> ServeMessage {
        if let limit = target.fileSizeLimit {
            do { try setLimit(.fileSize, to: limit) } catch { throw WorkerFailure(.geometry, errno: error.errno) }
        }
        var geometry = target.geometry
        geometry.version = PackedVersion.pack(workerVersion)
        Control.say(.geometry(geometry))
        return try Control.waitForServe()
    }

    /// Locks or unlocks bytes of the client's file, as the launch message says. The broker has accepted the disk by now.
    package func claim(_ target: OpenTarget) throws(WorkerFailure) {
        if launch.flags.contains(.claimsBytes) { try target.claim?.take() }
        if launch.flags.contains(.releasesBytes) { target.claim?.releaseRest() }
    }

    /// Maps the statistics page, for good, and returns its address.
    private func mapStatistics() throws(WorkerFailure) -> UInt {
        let bytes = StatisticsPage.bytes(queues: Int(launch.queues))
        let memory = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, WorkerDescriptor.statistics, 0)
        guard let memory, memory != MAP_FAILED else {
            throw WorkerFailure(.memory, errno: errno, detail: UInt64(WorkerDescriptor.statistics))
        }
        return UInt(bitPattern: memory)
    }

    /// The clock for requests once this process is sealed and has no call that tells the time.
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

    /// The files of each queue's ring: /dev/ublkcN, then the target's; the source of zeros has the same slot in all.
    package func fileTable(of target: OpenTarget) throws(WorkerFailure) -> [Int32] {
        try QueueAssignment.fileTable(target.files, zeroCopy: launch.flags.contains(.zeroCopy))
    }

    /// Starts the threads of all queues; each makes its ring with that seal, and waits.
    package func startQueues(
        _ target: OpenTarget, _ serve: ServeMessage, seal: RingSeal?
    ) throws(WorkerFailure) -> Rendezvous {
        // One arena: malloc makes those of threads with mmap, at their first allocation.
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
        let socketSeal = seal == nil ? nil : bundle.socketRing
        if !target.sockets.isEmpty, seal != nil, socketSeal == nil {
            throw WorkerFailure(.ringSeal, errno: ENOENT, detail: UInt64(launch.target.number))
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
                    socket: target.sockets.isEmpty ? -1 : target.sockets[Int(number)], socketSeal: socketSeal,
                    legacyOpcodes: launch.flags.contains(.legacyOpcodes),
                    statistics: statistics + UInt(number) * UInt(StatisticsPage.stride), clock: clock, board: board,
                    rendezvous: rendezvous))
        }
        return rendezvous
    }

    /// Waits until the queues' rings are sealed and probed, and makes the main thread's own ring, in which no operation
    /// is allowed: it sleeps there when its socket is dead. Afterwards no thread can make a ring, where the kernel
    /// supports that.
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

    /// Lets all queues fetch, now that all are ready, and waits until they have. (For a test: only the first `count`.)
    package func fetch(_ rendezvous: Rendezvous, count: Int? = nil) throws(WorkerFailure) {
        rendezvous.letFetch(count)
        try rendezvous.waitUntilServing(count)
    }

    /// Afterwards no call can make a descriptor.
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
