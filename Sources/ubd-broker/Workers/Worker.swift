import SystemCalls
import WorkerProtocol

/// Events of a worker, for its device.
enum WorkerEvent {
    /// exec succeeded; the worker's program runs from now on.
    case running
    /// A step between clone and exec failed.
    case launchFailed(step: Int32, errno: Int32)
    /// It was started, but the broker cannot watch it and has killed it; `.ended` follows.
    case unusable(SystemError)
    case message(WorkerMessage)
    /// It sent an unexpected message, or a file.
    case violation(String)
    case stopped
    case ended(ProcessChange)
}

/// The message that a worker may send next, once.
enum WorkerExpectation {
    case nothing
    case geometry
    case sealed

    /// Checks bytes from the worker: either an expected message, which consumes the expectation, or a violation
    /// (OpenSSH's monitor.c has such a table per state).
    mutating func take(_ bytes: [UInt8]) -> WorkerEvent {
        guard let message = WorkerMessage(decoding: bytes) else { return .violation("an unknown message") }
        switch (message, self) {
        case (.geometry, .geometry), (.sealed, .sealed), (.failed, .geometry), (.failed, .sealed):
            self = .nothing
            return .message(message)
        default:
            return .violation("a message at the wrong time")
        }
    }
}

/// The launcher's parameters.
struct WorkerLaunch {
    /// The worker's program, opened and checked when the broker started.
    let binary: Int32
    /// "/dev/ublkc0".
    let device: String
    let uid: UInt32
    let gid: UInt32
    /// The maximum number of its tasks, including the kernel's helper threads for its rings.
    let processes: UInt64
    /// Bytes that it may map and lock.
    let mappedBytes: UInt64
    /// The maximum number of descriptors during set-up, including a ring for each queue.
    let openFiles: UInt64
    let oomScore: Int32
    /// The processors on which it runs, as a bit mask; empty: all.
    var processors: [UInt64] = []
    /// cgroup.procs of its control group, open for writing; nil: it stays in the broker's group.
    var group: Int32?
}

/// A process that serves one device. Unit tests replace this seam.
protocol Worker: AnyObject {
    var uid: UInt32 { get }
    var pid: Int32 { get }
    /// Field 22 of /proc/PID/stat: together with the pid it identifies the process for good.
    var startTime: UInt64 { get }
    /// True while the kernel still runs it.
    var isAlive: Bool { get }
    /// How it ended; nil until `.ended`, which is sent once.
    var end: ProcessChange? { get }
    /// The violation; nil until `.violation`, after which its messages are ignored.
    var violation: String? { get }

    /// The inode of the broker's end of the control socket, by which a later broker recognizes it.
    var controlInode: UInt64? { get }
    /// The same for the worker's end; nil for an adopted worker.
    var workerEndInode: UInt64? { get }
    /// Takes back the broker's ends that an adopted worker keeps. Returns the parking end.
    func reclaim(_ sockets: DeviceRecord.Sockets) throws(SystemError) -> FileDescriptor
    /// The statistics page of an adopted worker: a memfd that cannot shrink while the broker reads it.
    func reclaimStatistics() throws(SystemError) -> FileDescriptor
    /// Starts to watch an adopted worker's socket; any message is a violation.
    func listen() throws(SystemError)

    func setHandler(_ handler: @escaping (WorkerEvent) -> Void)
    func expect(_ expectation: WorkerExpectation)
    /// Sends the launch message with its files, in the order of WorkerDescriptor.launchFiles.
    func send(_ message: LaunchMessage, parking: Int32, statistics: Int32, bundle: Int32) throws(SystemError)
    func send(_ message: ServeMessage) throws(SystemError)
    /// Stops all threads; `.stopped` follows when all have stopped.
    func stop() throws(SystemError)
    func resume() throws(SystemError)
    /// Sends SIGKILL. `.ended` follows when it is dead, which may never happen while it waits for a dead disk.
    func kill()
    /// A child of the broker changed state (SIGCHLD): checks whether this worker stopped.
    func checkStopped()
    /// Drops the broker's side. The worker may go on.
    func forget(undertaker: Undertaker, owner: UInt32)
}
