import SystemCalls
import WorkerProtocol

/// What happens to a worker, as its device hears it.
enum WorkerEvent {
    /// exec succeeded: from now on it is the worker's program that runs.
    case running
    /// A step between clone and exec failed.
    case launchFailed(step: Int32, errno: Int32)
    /// It was started, but the broker can't watch over it, and has killed it; its end follows.
    case unusable(SystemError)
    case message(WorkerMessage)
    /// It sent what it must not: something else, at another time, or a file.
    case violation(String)
    case stopped
    case ended(ProcessChange)
}

/// What a worker may say next, once.
enum WorkerExpectation {
    case nothing
    case geometry
    case sealed

    /// What bytes from the worker are to its device: a message that may come now, which uses the permission up, or a
    /// violation (the permit table; OpenSSH's monitor.c has one per state).
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

/// What a launch needs beyond the device's own plan.
struct WorkerLaunch {
    /// The worker's program, opened and checked when the broker started.
    let binary: Int32
    /// "/dev/ublkc0".
    let device: String
    let uid: UInt32
    let gid: UInt32
    /// Threads that it may have, the kernel's helpers for its rings included.
    let processes: UInt64
    /// Bytes that it may map, and lock.
    let mappedBytes: UInt64
    /// Descriptors while it sets itself up: a ring for each queue among them.
    let openFiles: UInt64
    let oomScore: Int32
    /// Where all of it runs, one bit for each processor; empty: anywhere.
    var processors: [UInt64] = []
    /// cgroup.procs of its control group, open to write; nil: it stays in the broker's.
    var group: Int32?
}

/// A process that serves one device. The seam at which the unit tests put workers of their own.
protocol Worker: AnyObject {
    var uid: UInt32 { get }
    var pid: Int32 { get }
    /// Field 22 of /proc/PID/stat: with the pid it names the process for good.
    var startTime: UInt64 { get }
    /// True while the kernel still runs it.
    var isAlive: Bool { get }
    /// How it ended, once `.ended` was sent, which comes only once; nil while it lives.
    var end: ProcessChange? { get }
    /// What it said that it must not, once `.violation` was sent, after which it is not listened to any more.
    var violation: String? { get }

    /// Inode of the broker's end of its control socket: by it a later broker knows the end again.
    var controlInode: UInt64? { get }
    /// The same of the worker's own end; nil for an adopted worker.
    var workerEndInode: UInt64? { get }
    /// Takes back the ends that an adopted worker holds for the broker; returns the parking end.
    func reclaim(_ sockets: DeviceRecord.Sockets) throws(SystemError) -> FileDescriptor
    /// The statistics page of an adopted worker: a memfd that can't shrink under the broker's eyes.
    func reclaimStatistics() throws(SystemError) -> FileDescriptor
    /// From now on an adopted worker is heard: it has nothing to say any more.
    func listen() throws(SystemError)

    func setHandler(_ handler: @escaping (WorkerEvent) -> Void)
    func expect(_ expectation: WorkerExpectation)
    /// Sends the launch message with its files, in the order of WorkerDescriptor.launchFiles.
    func send(_ message: LaunchMessage, parking: Int32, statistics: Int32, bundle: Int32) throws(SystemError)
    func send(_ message: ServeMessage) throws(SystemError)
    /// Stops every thread; `.stopped` comes when they all have.
    func stop() throws(SystemError)
    func resume() throws(SystemError)
    /// SIGKILL; `.ended` comes when it is dead, which a worker that waits for a dead disk may never be.
    func kill()
    /// A child of the broker changed state (SIGCHLD): see whether it was this one that stopped.
    func checkStopped()
    /// Ends the broker's side. The worker may go on.
    func forget(undertaker: Undertaker, owner: UInt32)
}
