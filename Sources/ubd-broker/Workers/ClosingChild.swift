import CLauncher
import Glibc
import SystemCalls

/// A child that closes sockets which hold strangers' files, and the queue to it (`ubd_start_undertaker`).
///
/// The broker closes its own copy of a file while the file is in a queue, both of whose ends this object keeps open;
/// only then may the child take it. So the broker's close is never the last one and never blocks, whatever happens to
/// the child.
final class ClosingChild {
    private let loop: EventLoop
    private let process: ProcessHandle
    /// Files enter at the first end; the child takes them from the second. Both stay open until the child has ended.
    private let bin: DescriptorPair
    /// nil after `dismiss`.
    private var orders: FileDescriptor?
    private var watches: [EventLoop.Watch] = []
    /// Files in the queue that the child is not yet allowed to take.
    private var owed: UInt32 = 0
    /// Files given and not reported as closed, by account.
    private(set) var unclosed: [UInt32: Int] = [:]
    private(set) var hasEnded = false
    private let closed: (_ account: UInt32) -> Void
    private let ended: () -> Void

    /// Concurrent closes; further files wait.
    static let closers: UInt32 = 8

    /// `closed` is called with a file's account after its close, `ended` when the child has ended.
    init(
        loop: EventLoop, closed: @escaping (_ account: UInt32) -> Void, ended: @escaping () -> Void
    ) throws(SystemError) {
        let bin = try makeMessagePair()
        let pair = try makeMessagePair()
        var child = ubd_child()
        let result = ubd_start_undertaker(bin.second.raw, pair.second.raw, ClosingChild.closers, &child)
        guard result == 0 else { throw SystemError("start a child", -result) }
        self.loop = loop
        self.closed = closed
        self.ended = ended
        self.bin = consume bin
        process = ProcessHandle(pid: child.pid, owning: FileDescriptor(owning: child.pidfd))
        orders = consume pair.first
        try watchIt()
    }

    private func watchIt() throws(SystemError) {
        watches.append(try loop.watch(process.file.raw, .readable) { [weak self] _ in self?.reap() })
        guard let orders = orders?.raw else { return }
        watches.append(try loop.watch(orders, .readable) { [weak self] _ in self?.hear() })
    }

    /// Passes a file to the child and closes the broker's copy. If it throws, the file remains the caller's. Errors:
    /// EAGAIN when there is no room, ETOOMANYREFS when the kernel refuses to send the file.
    func give(_ file: Int32, account: UInt32) throws(SystemError) {
        let message = withUnsafeBytes(of: account) { Array($0) }
        try SystemCalls.send(bin.first.raw, message, files: [file], wait: false)
        close(file)
        unclosed[account, default: 0] += 1
        owed += 1
        tell()
    }

    /// Allows the child to take the files in the queue. If there is no room for this message, the next call sends it.
    func tell() {
        guard owed > 0, let orders = orders?.raw else { return }
        let message = withUnsafeBytes(of: owed) { Array($0) }
        if (try? SystemCalls.send(orders, message, wait: false)) != nil { owed = 0 }
    }

    var pid: Int32 { process.pid }

    /// The child is not yet allowed to take some files.
    var isOwing: Bool { owed > 0 && orders != nil }

    /// Tells the child that no more files come. It ends when all are closed; keep this object until `ended`.
    func dismiss() {
        guard let file = orders.take() else { return }
        for watch in watches where watch.fd == file.raw { loop.unwatch(watch) }
        watches.removeAll { $0.fd == file.raw }
    }

    /// The end from which the child takes files. Closing its last copy closes the files in the queue.
    var descriptor: Int32 { bin.second.raw }

    /// A file that the child did not take before it ended; it is the caller's again. nil when none is left.
    func takeBack() -> (file: Int32, account: UInt32)? {
        var account: UInt32 = 0
        let received = withUnsafeMutableBytes(of: &account) { buffer in
            try? receiveWithFiles(bin.second.raw, into: buffer, maximum: 1, peek: false, wait: false)
        }
        guard let file = received?.files.first else { return nil }
        forget(account)
        return (file, account)
    }

    private func forget(_ account: UInt32) {
        let rest = unclosed[account, default: 1] - 1
        unclosed[account] = rest > 0 ? rest : nil
    }

    private func hear() {
        guard let raw = orders?.raw else { return }
        var account: UInt32 = 0
        for _ in 0..<64 {
            guard recv(raw, &account, 4, Int32(MSG_DONTWAIT)) == 4 else { return }
            forget(account)
            closed(account)
        }
    }

    private func reap() {
        hear()
        guard (try? process.poll()) != nil else { return }
        for watch in watches { loop.unwatch(watch) }
        watches = []
        hasEnded = true
        ended()
    }
}
