import Glibc
import SystemCalls
import WorkerProtocol

@testable import ubd_broker

/// A worker that behaves correctly until a test makes it misbehave at some point.
final class FakeWorker: Worker {
    /// The point at which it misbehaves.
    enum Fault: CaseIterable {
        case launchFails
        /// The broker cannot watch it.
        case unusable
        case diesAtLaunch
        /// Its end of the socket closes before its death is known.
        case closesSocket
        case refusesFile
        case diesAfterGeometry
        case unsealedRings
        case diesWhenSealed
        case diesWhenVerified
        case violates
        case diesInRehearsal
    }

    /// The moments at which a test can interfere.
    enum Moment: CaseIterable {
        /// The launcher's child runs the program.
        case running
        /// It is sent the launch message, and answers with its geometry,
        case launch
        /// then "serve", and answers that it is sealed.
        case serve
        case stop
        case resume
    }

    let uid: UInt32
    let pid: Int32 = 4711
    let startTime: UInt64 = 99
    private(set) var end: ProcessChange?
    private(set) var violation: String?
    var hasEnded: Bool { end != nil }
    private(set) var signals: [String] = []
    var isAlive: Bool { !hasEnded }
    /// A worker that waits for a dead disk.
    var survivesKill = false
    private let fault: Fault?
    /// Called at each moment; true: it replaced the worker's action. The broker's call throws what it throws.
    var interfere: ((Moment, FakeWorker) throws(SystemError) -> Bool)?
    /// The failure with which it refuses the file.
    var failure = WorkerFailure(.fileIsDirectory)
    /// It got /dev/null: it must fail at its first fetch.
    let isRehearsal: Bool
    /// The descriptor of its program.
    let binary: Int32
    /// The processors that the launcher keeps it on.
    let processors: [UInt64]
    /// The control group that it moves to.
    let group: Int32?
    private let geometry: Geometry
    private let loop: EventLoop
    private var handler: (WorkerEvent) -> Void

    init(
        _ launch: WorkerLaunch, fault: Fault?, geometry: Geometry, loop: EventLoop,
        handler: @escaping (WorkerEvent) -> Void
    ) {
        uid = launch.uid
        isRehearsal = launch.device == "/dev/null"
        binary = launch.binary
        processors = launch.processors
        group = launch.group
        self.fault = fault
        self.geometry = geometry
        self.loop = loop
        self.handler = handler
        loop.later { [self] in
            if fault == .launchFails {
                self.handler(.launchFailed(step: 2, errno: EBUSY))
                die(.exited(127))
            } else if fault == .unusable {
                _ = try? interfere?(.running, self)
                self.handler(.unusable(SystemError("epoll_ctl", ENOSPC)))
            } else if (try? interfere?(.running, self)) != true {
                self.handler(.running)
            }
        }
    }

    func setHandler(_ handler: @escaping (WorkerEvent) -> Void) { self.handler = handler }
    let controlInode: UInt64? = nil
    let workerEndInode: UInt64? = nil
    func reclaim(_ sockets: DeviceRecord.Sockets) throws(SystemError) -> FileDescriptor {
        throw SystemError("reclaim", EPERM)
    }
    func reclaimStatistics() throws(SystemError) -> FileDescriptor { throw SystemError("reclaim", EPERM) }
    func listen() {}
    func expect(_ expectation: WorkerExpectation) {}

    /// The messages that it received.
    private(set) var launch: LaunchMessage?
    private(set) var serve: ServeMessage?

    func send(_ message: LaunchMessage, parking: Int32, statistics: Int32, bundle: Int32) throws(SystemError) {
        launch = message
        if fault == .closesSocket {
            loop.later { [self] in die(.killed(signal: SIGKILL)) }
            throw SystemError("send", EPIPE)
        }
        if try interfere?(.launch, self) == true { return }
        loop.later { [self] in
            switch fault {
            case .diesAtLaunch: die(.killed(signal: SIGSYS))
            case .refusesFile: handler(.message(.failed(failure)))
            case .violates:
                violation = "files in a message"
                handler(.violation("files in a message"))
            default: handler(.message(.geometry(geometry)))
            }
        }
    }

    func send(_ message: ServeMessage) throws(SystemError) {
        serve = message
        if try interfere?(.serve, self) == true { return }
        loop.later { [self] in
            if isRehearsal {
                if fault == .diesInRehearsal { return die(.killed(signal: SIGSEGV)) }
                return handler(.message(.failed(WorkerFailure(.mapDescriptors, errno: ENODEV))))
            }
            switch fault {
            case .diesAfterGeometry: die(.killed(signal: SIGSEGV))
            case .unsealedRings: handler(.message(.sealed([])))
            default: handler(.message(.sealed([.rings])))
            }
        }
    }

    func stop() throws(SystemError) {
        signals.append("STOP")
        if try interfere?(.stop, self) == true { return }
        loop.later { [self] in
            if fault == .diesWhenSealed { return die(.killed(signal: SIGKILL)) }
            handler(.stopped)
            if fault == .diesWhenVerified { die(.killed(signal: SIGKILL)) }
        }
    }

    func resume() throws(SystemError) {
        signals.append("CONT")
        _ = try interfere?(.resume, self)
    }

    /// Sends the broker a message after a moment.
    func tell(_ event: WorkerEvent) {
        loop.later { [self] in
            if hasEnded { return }
            if case .violation(let what) = event { violation = what }
            handler(event)
        }
    }

    /// Dies after a moment.
    func dieSoon(_ change: ProcessChange) { loop.later { [self] in die(change) } }

    func kill() {
        signals.append("KILL")
        if !survivesKill { loop.later { [self] in die(.killed(signal: SIGKILL)) } }
    }

    func checkStopped() {}
    func forget(undertaker: Undertaker, owner: UInt32) {}

    func die(_ change: ProcessChange) {
        if hasEnded { return }
        end = change
        handler(.ended(change))
    }
}
