import CShims
import Glibc
import Numbers
import SystemCalls
import WorkerProtocol

/// The version of ubd that this worker belongs to.
#if UBD_TEST_CRASH
    public let workerVersion = UBDVersion.text + "+test-crash"
#else
    public let workerVersion = UBDVersion.text
#endif

/// The program: parses the command line, and becomes the worker of one device. Returns an exit status for --help,
/// --version and wrong usage; a worker ends by itself.
public func runWorker(arguments: [String] = CommandLine.arguments) -> Int32 {
    // First of all: no process of the same uid may inspect this one.
    processControl(PR_SET_DUMPABLE, 0)
    switch arguments.dropFirst().first {
    case nil: break
    case "--version":
        return show("ubd-worker \(workerVersion)\n")
    case "--help":
        return show(
            """
            usage: ubd-worker [--help | --version]
            Serves one ubd device. ubd-broker starts it with the device and a control socket. It has no options and reads
            no policy; ubd-broker prints what confines it (see its --help).

            """)
    case .some(let argument):
        say("unknown argument '\(argument)'; see ubd-worker --help")
        return WorkerExit.usage
    }
    guard isMessageSocket(WorkerDescriptor.control) else {
        say(
            "descriptor \(WorkerDescriptor.control) is not a broker's control socket; "
                + "this program is started by ubd-broker: use 'ubd add' to make a device")
        return WorkerExit.usage
    }
    do {
        try becomeWorker()
    } catch {
        Control.fail(error)
    }
}

/// From the launch message to serving, in the steps of WorkerStart.
func becomeWorker() throws(WorkerFailure) -> Never {
    var start = try WorkerStart()
    start.lockMemory()
    try start.denyFiles()
    try start.loadSetupFilter()
    let target = try start.openTarget()
    let serve = try start.announce(target)
    try start.claim(target)
    let rendezvous = try start.startQueues(target, serve, seal: start.seal(for: target))
    let idle = try start.sealRings(of: rendezvous)
    try start.fetch(rendezvous)
    // Encoded before the last filter, behind which memory cannot grow.
    let sealed = WorkerMessage.sealed(start.report).encoded()
    try start.giveUpNewFiles()
    try start.loadLoopFilter()
    Control.say(sealed)
    Control.linger(idle)
}

private func isMessageSocket(_ descriptor: Int32) -> Bool {
    var type: Int32 = 0
    var size = socklen_t(MemoryLayout<Int32>.size)
    return getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == Int32(SOCK_SEQPACKET.rawValue)
}

/// Prints a text; returns the exit status.
private func show(_ text: String) -> Int32 {
    let error = writeStandard(text, to: STDOUT_FILENO)
    if error == 0 { return 0 }
    say(outputLost(error))
    return 1
}

private func say(_ message: String) {
    _ = writeStandard("ubd-worker: \(message)\n", to: STDERR_FILENO)
}
