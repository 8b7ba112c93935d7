import BrokerInterface
import Glibc
import SystemCalls

/// A reply to a client that passes files.
enum ClientAnswer {
    /// Send at most `count` files on this socket. The receiver must close the descriptor.
    case files(count: Int, parking: Int32)
    case added(Device, [Notice])
    case failed(InterfaceError)
}

/// An operation whose client waits on its connection.
protocol ClientOperation: AnyObject {
    /// The connection is closed.
    func clientGone()
}

/// The handover of a client's files through a parking socket. The broker keeps one end and gives the other away, waits
/// until a message arrives, and shuts the socket down. It holds the socket, never a file.
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

    /// The socket for the files.
    var descriptor: Int32? { end?.raw }

    /// Hands the socket over to the caller.
    func take() -> FileDescriptor? {
        stop()
        return end.take()
    }

    /// Stops waiting.
    func stop() {
        if let watch { loop.unwatch(watch) }
        watch = nil
        loop.cancel(timer)
        timer = nil
    }

    /// Returns the client's end. `completion` is called once, when a message with a file has arrived (nil) or with the
    /// error.
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
        // After this nobody can add to it, and nothing is sent to the client.
        shutdown(raw, Int32(SHUT_RDWR))
        if case .files? = try? peekParked(raw) { return completion(nil) }
        completion(
            .badFile(
                message: "the message on the parking socket had no file",
                remedy: "send the file as SCM_RIGHTS with one byte of data", index: 0))
    }
}
