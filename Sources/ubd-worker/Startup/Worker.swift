import CShims
import Glibc
import KernelABI
import Ring
import Sandbox
import SystemCalls
import WorkerProtocol

/// The version of ubd that this worker belongs to.
public let workerVersion = "0.1.0"

/// The program: parses the command line, which is for curious people, and becomes the worker of one device.
/// Returns the exit status when it is not a worker's place to be; a worker ends by itself.
public func runWorker(arguments: [String] = CommandLine.arguments) -> Int32 {
    // First of all: nobody of our uid may look into this process.
    _ = ubd_prctl(Int32(PR_SET_DUMPABLE), 0, 0, 0, 0)
    switch arguments.dropFirst().first {
    case nil: break
    case "--version":
        print(to: STDOUT_FILENO, "ubd-worker \(workerVersion)\n")
        return 0
    case "--help":
        print(
            to: STDOUT_FILENO,
            """
            usage: ubd-worker [--help | --version]
            Serves one ubd device. ubd-broker starts it with the device and a control socket; it has no options.

            """)
        return 0
    case .some(let argument):
        print(to: STDERR_FILENO, "ubd-worker: unknown argument '\(argument)'; see ubd-worker --help\n")
        return WorkerExit.usage
    }
    guard isMessageSocket(WorkerDescriptor.control) else {
        print(
            to: STDERR_FILENO,
            "ubd-worker: descriptor \(WorkerDescriptor.control) is not a broker's control socket; "
                + "this program is started by ubd-broker: use 'ubd add' to make a device\n")
        return WorkerExit.usage
    }
    do {
        try becomeWorker()
    } catch {
        Control.fail(error)
    }
}

/// The start of a worker, step by step (docs/design.md §3). Every step may fail; the last one does not return.
func becomeWorker() throws(WorkerFailure) -> Never {
    let launch = try Control.receiveLaunch()
    let bundle = try Control.readBundle()
    // The filter has no uname(2).
    let kernel = KernelVersion.running()
    var report = try raiseFirstWall(bundle)

    let files = try ClientFiles.peek(launch)
    let target = try launch.target.open(launch, files: files, kernel: kernel)
    if let limit = target.fileSizeLimit {
        do { try setLimit(.fileSize, to: limit) } catch { throw WorkerFailure(.geometry, errno: error.errno) }
    }
    Control.say(.geometry(target.geometry))
    let serve = try Control.waitForServe()

    let rendezvous = try startQueues(launch, target, bundle, serve)
    try rendezvous.waitUntilPrepared()
    let idle = try makeIdleRing()
    let ringless = try forbidRings()
    report.insert(.rings)
    if ringless && !rendezvous.someQueueCanMakeRings { report.insert(.futureRings) }
    rendezvous.letFetch()
    try rendezvous.waitUntilServing()

    // Made before the last wall: behind it memory can't grow.
    let sealed = WorkerMessage.sealed(report).encoded()
    do { try setLimit(.openFiles, to: 0) } catch { throw WorkerFailure(.loopFilter, errno: error.errno) }
    do {
        try SystemCallFilter(instructions: bundle.loopFilter).installOnAllThreads()
    } catch {
        throw WorkerFailure(.loopFilter, errno: error.errno)
    }
    _ = sealed.withUnsafeBytes { write(WorkerDescriptor.control, $0.baseAddress, $0.count) }
    Control.linger(idle)
}

/// Landlock and the set-up filter, before the first touch of anything that comes from the client.
private func raiseFirstWall(_ bundle: SandboxBundle) throws(WorkerFailure) -> SealReport {
    var report: SealReport = []
    do {
        if try Landlock.denyEverything() { report.insert(.landlock) }
    } catch {
        throw WorkerFailure(.landlock, errno: error.errno)
    }
    do {
        try SystemCallFilter(instructions: bundle.setupFilter).installOnAllThreads()
    } catch {
        throw WorkerFailure(.setupFilter, errno: error.errno)
    }
    return report
}

private func startQueues(
    _ launch: LaunchMessage, _ target: OpenTarget, _ bundle: SandboxBundle, _ serve: ServeMessage
) throws(WorkerFailure) -> Rendezvous {
    // One arena: those of threads are made with mmap, at their first allocation.
    mallopt(M_ARENA_MAX, 1)
    let rendezvous = Rendezvous(queues: Int(launch.queues))
    let seal = RingSeal(
        operations: bundle.ringOperations, registerOperations: bundle.ringRegisterOperations,
        flagsAllowed: bundle.ringFlagsAllowed, flagsRequired: bundle.ringFlagsRequired)
    for number in 0..<launch.queues {
        try QueueThread.start(
            QueueAssignment(
                number: number, depth: launch.depth, maxIOBytes: launch.maxIOBytes, target: target.served,
                zeroCopy: launch.flags.contains(.zeroCopy), batch: launch.flags.contains(.batch),
                files: fileTable(target, zeroCopy: launch.flags.contains(.zeroCopy)),
                processors: Int(number) < serve.affinity.count ? serve.affinity[Int(number)] : [], seal: seal,
                rendezvous: rendezvous))
    }
    return rendezvous
}

/// The file table of each ring: /dev/ublkcN, the target's files, and, without a copy, where zeros come from.
private func fileTable(_ target: OpenTarget, zeroCopy: Bool) -> [Int32] {
    var files = [WorkerDescriptor.device] + target.files
    if zeroCopy {
        while files.count < Int(Queue.zeroSlot) { files.append(-1) }
        files.append(WorkerDescriptor.zeroes)
    }
    return files
}

/// The main thread's ring, in which it sleeps when its socket is dead: nothing is allowed in it.
private func makeIdleRing() throws(WorkerFailure) -> Ring {
    let nothing = RingSeal(
        operations: [], registerOperations: [UInt8(IOUring.Register.enableRings)], flagsAllowed: 0, flagsRequired: 0)
    return try SealedRing.make(queue: .max, entries: 1, tables: SealedRing.Tables(), seal: nothing)
}

private func forbidRings() throws(WorkerFailure) -> Bool {
    do { return try forbidFutureRings() } catch { throw WorkerFailure(.ringSeal, errno: error.errno, detail: .max) }
}

private func isMessageSocket(_ descriptor: Int32) -> Bool {
    var type: Int32 = 0
    var size = socklen_t(MemoryLayout<Int32>.size)
    return getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == Int32(SOCK_SEQPACKET.rawValue)
}

private func print(to descriptor: Int32, _ text: String) {
    let bytes = Array(text.utf8)
    _ = bytes.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) }
}
