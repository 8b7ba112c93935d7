import CEscape
import Glibc
import KernelABI
import Ring
import SystemCalls
import Worker
import WorkerProtocol

/// Makes the attempts of a plan and writes down what the kernel said to each. Allocates nothing once it exists, so that
/// it works behind all walls, and so that a death is the attempt's and nobody else's.
struct Attempts: ~Copyable {
    /// The first of the client's files (through the page cache) in the file table of the rings.
    private static let file: Int32 = 1
    /// An operation that had not come back when it was last looked for: it was taken, not refused.
    private static let pending: Int64 = 1 << 40
    private static let spins = 2000
    private static let patience = 50_000

    private let plan: Plan
    /// Sealed exactly like the queues' rings, or left open like them; used by the main thread alone.
    private var ring: Ring
    /// Where the test is heard and told, whatever the mode lets the queues' rings do: READ and WRITE, nothing else.
    private var channel: Ring

    init(_ plan: Plan, ring: consuming Ring, channel: consuming Ring) {
        self.plan = plan
        self.ring = ring
        self.channel = channel
        Attempts.prepareReport(plan)
    }

    private static func prepareReport(_ plan: Plan) {
        Plan.report.update(repeating: pending, count: plan.count + 2)
        Plan.report[0] = 0
        Plan.report[1] = 0
    }

    /// From now on attempts are made in a ring of this moment, which nobody has sealed.
    mutating func takeNewRing() throws(WorkerFailure) {
        do { ring = try Ring(entries: 8, completions: 16, flags: 0) } catch {
            throw WorkerFailure(.ring, errno: error.errno)
        }
    }

    /// A worker with a ring's descriptor is not believed; the ring itself stays.
    func closeNewRing() { close(ring.descriptor) }

    // MARK: While only stage A stands

    /// System calls, written down with write(2), which stage A allows.
    static func runEarly(_ plan: Plan) {
        prepareReport(plan)
        // The file's offset was put there when the plan was read; it only goes forward.
        Plan.report[0] = 1
        if plan.isInFile { _ = write(WorkerDescriptor.firstFile, Plan.report, 8) }
        tryCalls(plan)
        Plan.report[1] = 1
        if plan.isInFile { _ = write(WorkerDescriptor.firstFile, Plan.report + 1, (plan.count + 1) * 8) }
    }

    // MARK: Behind the walls

    /// Waits for the test's sign. Only reads of a ring can be used for that, so it goes on asking.
    mutating func waitForTrigger() {
        let word = Plan.base + Plan.Offset.trigger
        if plan.isInFile { word.storeBytes(of: 0, as: UInt64.self) }
        repeat {
            if plan.isInFile {
                channel.push(
                    .read(
                        file: Attempts.file, into: UInt64(UInt(bitPattern: word)), length: 8,
                        offset: UInt64(Plan.Offset.trigger), userData: 0))
                waitForChannel()
            } else {
                // The test writes it here.
                _ = channel.submit(waitingFor: 0)
            }
        } while word.load(as: UInt64.self) == 0
    }

    /// The fetches of a plan that serves its queue by itself: they stay in the ring.
    mutating func fetch() { tryEntries(0..<plan.early) }

    /// All of them, in their order.
    mutating func run() {
        Plan.report[0] = 1
        writeDown(words: 0..<1)
        switch plan.kind {
        case .calls: Attempts.tryCalls(plan)
        case .entries, .newRing, .socketEntries: tryEntries(plan.early..<plan.count)
        case .registrations, .socketRegistrations: tryRegistrations()
        }
        waitForLateOnes()
        Plan.report[1] = 1
        writeDown(words: 1..<plan.count + 2)
    }

    /// Gives operations that the kernel's helper threads do the time that they take on a busy machine.
    private mutating func waitForLateOnes() {
        for _ in 0..<Attempts.patience {
            let isPending = (plan.early..<plan.count).contains { Plan.report[$0 + 2] == Attempts.pending }
            if plan.kind == .calls || !isPending { return }
            collect()
        }
    }

    /// The way in which a sealed worker can tell anything. Late completions of attempts are collected on the way.
    private mutating func writeDown(words: Range<Int>) {
        guard plan.isInFile else { return }
        channel.push(
            .write(
                file: Attempts.file, from: UInt64(UInt(bitPattern: Plan.report + words.lowerBound)),
                length: UInt32(words.count * 8), offset: UInt64(Plan.Offset.results + words.lowerBound * 8),
                flags: 0, userData: 0))
        waitForChannel()
    }

    private mutating func waitForChannel() {
        var isDone = false
        while !isDone {
            _ = channel.submit(waitingFor: 1)
            var batch = channel.completions()
            while batch.take() != nil { isDone = true }
            channel.finish(batch)
        }
    }

    /// Takes what the attempts came to so far; true when `userData` is among it.
    @discardableResult
    private mutating func collect(_ userData: UInt64 = 0) -> Bool {
        _ = ring.submit(waitingFor: 0)
        var isFound = false
        var batch = ring.completions()
        while let completion = batch.take() {
            if completion.userData == userData { isFound = true }
            if completion.userData > 0, completion.userData <= UInt64(plan.count) {
                Plan.report[Int(completion.userData) + 1] = Int64(completion.result)
            }
        }
        ring.finish(batch)
        return isFound
    }

    private static func tryCalls(_ plan: Plan) {
        for index in 0..<plan.count {
            let call = (Plan.records + index * Plan.recordBytes).assumingMemoryBound(to: UInt64.self)
            Plan.report[index + 2] = ubd_escape_call(call)
        }
    }

    private mutating func tryEntries(_ records: Range<Int>) {
        for index in records {
            let record = Plan.records + index * Plan.recordBytes
            let userData = UInt64(index + 1)
            record.storeBytes(of: userData, toByteOffset: 32, as: UInt64.self)
            ring.push(record.load(as: SubmissionEntry.self))
            for _ in 0..<Attempts.spins {
                if collect(userData) { break }
            }
        }
    }

    private func tryRegistrations() {
        for index in 0..<plan.count {
            let operation = (Plan.records + index * Plan.recordBytes).load(as: UInt64.self)
            Plan.report[index + 2] = Int64(ring.probeRegister(UInt32(truncatingIfNeeded: operation)))
        }
    }
}
