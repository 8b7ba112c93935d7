import BrokerInterface
import Glibc
import SystemCalls

/// What a client hears that brings files.
enum ClientAnswer {
    /// Send at most `count` files into this socket. The descriptor is the receiver's to close.
    case files(count: Int, parking: Int32)
    case added(Device, [Notice])
    case failed(InterfaceError)
}

/// An operation that a client waits for on its connection.
protocol ClientOperation: AnyObject {
    /// The connection is closed.
    func clientGone()
}

/// The client's files on their way into a parking socket: the broker keeps one end and gives the other away, waits until
/// something lies there, and closes the way for more. It holds the socket, never a file.
final class FileHandover {
    /// Milliseconds.
    private static let deadline = 10_000

    private let loop: EventLoop
    private var end: FileDescriptor?
    private var watch: EventLoop.Watch?
    private var timer: EventLoop.Timer?

    init(loop: EventLoop) {
        self.loop = loop
    }

    /// Where the files lie, or will.
    var descriptor: Int32? { end?.raw }

    /// The socket, from now on the caller's.
    func take() -> FileDescriptor? {
        stop()
        return end.take()
    }

    /// Waits no longer.
    func stop() {
        if let watch { loop.unwatch(watch) }
        watch = nil
        loop.cancel(timer)
        timer = nil
    }

    /// Returns the end for the client. `completion` hears once that a message with a file has come, or why not.
    func begin(_ completion: @escaping (InterfaceError?) -> Void) throws(SystemError) -> Int32 {
        let pair = try makeMessagePair()
        watch = try loop.watch(pair.first.raw, .readable) { [unowned self] _ in arrived(completion) }
        end = consume pair.first
        timer = loop.after(milliseconds: FileHandover.deadline) { [unowned self] in
            stop()
            completion(
                .badFile(
                    message: "no file came within \(FileHandover.deadline / 1000) seconds",
                    remedy: "send it in one message right after the first reply", index: 0))
        }
        return pair.second.release()
    }

    private func arrived(_ completion: (InterfaceError?) -> Void) {
        stop()
        guard let raw = end?.raw else { return }
        // Nobody adds to it from now on, and nothing goes back to the client.
        shutdown(raw, Int32(SHUT_RDWR))
        if case .files? = try? peekParked(raw) { return completion(nil) }
        completion(
            .badFile(
                message: "the message on the parking socket had no file",
                remedy: "send the file as SCM_RIGHTS with one byte of data", index: 0))
    }
}
