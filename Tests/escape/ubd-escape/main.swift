// A program for a worker's place (ubd-broker --worker): the worker's own start, from the worker's own module, step by
// step, with what the plan in its backing file says in between. Tests/lab/groups/escape tells what is tried.
import CShims
import Glibc
import KernelABI
import Ring
import Synchronization
import SystemCalls
import Worker
import WorkerProtocol

/// Everything that the kernels of the lab can do in a ring: what a ring without a seal would allow.
let everything = RingSeal(
    operations: Array(0..<58), registerOperations: Array(0..<30), flagsAllowed: 0x7f, flagsRequired: 0)

/// By which the attempts hear and tell.
let readAndWrite = RingSeal(
    operations: [IOUring.Operation.read, IOUring.Operation.write],
    registerOperations: [UInt8(IOUring.Register.enableRings)], flagsAllowed: 0,
    flagsRequired: IOUring.EntryFlags.fixedFile)

func serve() throws(WorkerFailure) -> Never {
    var start = try WorkerStart()
    let plan = try Plan.obtained(start.launch)
    let omissions = plan?.omissions ?? []

    start.lockMemory()
    if !omissions.contains(.landlock) { try start.denyFiles() }
    if !omissions.contains(.setupFilter) { try start.loadSetupFilter() }
    let target = try start.openTarget()
    if let plan, plan.moment == .setup { Attempts.runEarly(plan) }
    let serve = try start.announce(target)

    let seal = omissions.contains(.ringSeal) ? everything : start.seal(for: target)
    if omissions.contains(.restrictions) { try probeOpenRing(seal) }
    if let plan, plan.moment == .alone { try serveAlone(&start, plan, target, seal) }
    let rendezvous = try start.startQueues(target, serve, seal: seal)
    // Never destroyed behind the last wall, which has no munmap.
    var attempts: UnsafeMutablePointer<Attempts>?
    if let plan, [.sealed, .live, .ringed].contains(plan.moment) {
        attempts = .allocate(capacity: 1)
        attempts?.initialize(to: try makeAttempts(start, plan, target, seal))
    }
    let idle = try start.sealRings(of: rendezvous)
    if let plan, plan.moment == .ringed {
        if plan.kind == .newRing { try attempts?.pointee.takeNewRing() }
        attempts?.pointee.run()
        if plan.kind == .newRing { attempts?.pointee.closeNewRing() }
    }
    if plan?.moment == .endBeforeFetch { _exit(21) }
    if plan?.moment == .endHalfFetched {
        try start.fetch(rendezvous, count: 1)
        _exit(22)
    }
    try start.fetch(rendezvous)
    if plan?.moment == .endFetched { _exit(23) }

    let report = omissions.contains(.ringReport) ? start.report.subtracting(.rings) : start.report
    let sealed = WorkerMessage.sealed(report).encoded()
    try start.giveUpNewFiles()
    if !omissions.contains(.loopFilter) { try start.loadLoopFilter() }
    if plan?.moment == .sealed { attempts?.pointee.run() }
    Control.say(sealed)
    if plan?.moment == .live {
        attempts?.pointee.waitForTrigger()
        attempts?.pointee.run()
    }
    Control.linger(idle)
}

/// A ring for the attempts, with all that a queue's ring has, and one to be heard by.
func makeAttempts(
    _ start: WorkerStart, _ plan: Plan, _ target: OpenTarget, _ seal: RingSeal
) throws(WorkerFailure) -> Attempts {
    var tables = SealedRing.Tables(files: try start.fileTable(of: target))
    if start.launch.flags.contains(.zeroCopy) { tables.bufferSlots = UInt32(start.launch.depth) }
    let isOfSocket = plan.kind == .socketEntries || plan.kind == .socketRegistrations
    if isOfSocket { tables = SealedRing.Tables(files: Array(target.sockets.prefix(1))) }
    let ring = try SealedRing.make(
        queue: .max, entries: 64, tables: tables,
        seal: isOfSocket && !plan.omissions.contains(.ringSeal) ? start.bundle.socketRing : seal)
    let plain = SealedRing.Tables(files: [WorkerDescriptor.device] + target.files)
    let channel = try SealedRing.make(queue: .max, entries: 4, tables: plain, seal: readAndWrite)
    return Attempts(plan, ring: ring, channel: channel)
}

/// The second thread of a worker that serves alone.
enum Helper {
    static let isRunning = Atomic<Bool>(false)

    /// The filter of the loop forbids what a thread calls at its start, and a new read. So it is loaded when the thread is in
    /// its read: half a second after it runs.
    static func waitUntilReading() {
        while !isRunning.load(ordering: .acquiring) {}
        let end = monotonicNanoseconds() + 500_000_000
        while monotonicNanoseconds() < end {}
    }
}

/// The main thread is the server of the only queue, and does with its requests what the plan says.
func serveAlone(
    _ start: inout WorkerStart, _ plan: Plan, _ target: OpenTarget, _ seal: RingSeal
) throws(WorkerFailure) -> Never {
    // The broker counts threads: one for each queue beside the main one. This one takes what the broker says, as nobody else.
    var thread = pthread_t()
    let waits: @convention(c) (UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? = { _ in
        Helper.isRunning.store(true, ordering: .releasing)
        var byte: UInt8 = 0
        while true { _ = read(WorkerDescriptor.control, &byte, 1) }
    }
    guard pthread_create(&thread, nil, waits, nil) == 0 else { throw WorkerFailure(.thread) }
    Helper.waitUntilReading()
    let attempts = UnsafeMutablePointer<Attempts>.allocate(capacity: 1)
    attempts.initialize(to: try makeAttempts(start, plan, target, seal))
    let idle = try start.sealRings(of: Rendezvous(queues: 0))
    attempts.pointee.fetch()
    let sealed = WorkerMessage.sealed(start.report).encoded()
    try start.giveUpNewFiles()
    try start.loadLoopFilter()
    Control.say(sealed)
    attempts.pointee.waitForTrigger()
    attempts.pointee.run()
    Control.linger(idle)
}

/// The worker's probe must find that a ring was enabled without its restrictions, and end the worker.
func probeOpenRing(_ seal: RingSeal) throws(WorkerFailure) {
    let hole: SealedRing.Hole?
    do {
        var ring = try Ring(entries: 4, completions: 8, flags: SealedRing.flags)
        try ring.enable()
        hole = try SealedRing.probe(&ring, seal)
    } catch { throw WorkerFailure(.ring, errno: error.errno) }
    if hole != nil { throw WorkerFailure(.ringSeal) }
}

processControl(PR_SET_DUMPABLE, 0)
do { try serve() } catch { Control.fail(error) }
