// A program for a worker's place (ubd-broker --worker): the worker's own start, from the worker's own module, step by
// step, with what the plan in its backing file says in between. Tests/lab/groups/escape tells what is tried.
import CShims
import Glibc
import KernelABI
import Ring
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
    let plan = try Plan.peeked(start.launch)
    let omissions = plan?.omissions ?? []

    start.lockMemory()
    if !omissions.contains(.landlock) { try start.denyFiles() }
    if !omissions.contains(.setupFilter) { try start.loadSetupFilter() }
    let target = try start.openTarget()
    if let plan, plan.moment == .setup { Attempts.runEarly(plan) }
    let serve = try start.announce(target)

    let seal = omissions.contains(.ringSeal) ? everything : start.seal
    if omissions.contains(.restrictions) { try probeOpenRing(seal) }
    let rendezvous = try start.startQueues(target, serve, seal: seal)
    var attempts: Attempts?
    if let plan, plan.moment == .sealed || plan.moment == .live {
        let files = SealedRing.Tables(files: [WorkerDescriptor.device] + target.files)
        let ring = try SealedRing.make(queue: .max, entries: 8, tables: files, seal: seal)
        let channel = try SealedRing.make(queue: .max, entries: 4, tables: files, seal: readAndWrite)
        attempts = .some(Attempts(plan, ring: ring, channel: channel))
        // Registrations are system calls, which the last wall forbids altogether: what the seal alone does shows here.
        if plan.kind == .registrations { attempts?.run() }
    }
    let idle = try start.sealRings(of: rendezvous)
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
    if let plan, plan.kind != .registrations, plan.moment == .sealed { attempts?.run() }
    Control.say(sealed)
    if let plan, plan.kind != .registrations, plan.moment == .live {
        attempts?.waitForTrigger()
        attempts?.run()
    }
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

_ = ubd_prctl(Int32(PR_SET_DUMPABLE), 0, 0, 0, 0)
do { try serve() } catch { Control.fail(error) }
