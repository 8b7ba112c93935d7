import CLauncher
import Glibc
import SystemCalls

/// A child that closes sockets with strangers' files in them, and the way to it (`ubd_start_undertaker`).
///
/// A file lies in a queue both of whose ends this object holds when the broker closes its own copy, and the child takes it
/// only after that. So that close is never the last one and never waits, whatever becomes of the child.
final class ClosingChild {
    private let loop: EventLoop
    private let process: ProcessHandle
    /// Files go in by the first and come out, in the child, by the second. Kept here until the child has ended.
    private let bin: DescriptorPair
    /// Nil once the child was told to end.
    private var orders: FileDescriptor?
    private var watches: [EventLoop.Watch] = []
    /// Files in the bin that the child has not been told to take yet.
    private var owed: UInt32 = 0
    /// Files that were given and are not closed yet, as far as the child has said, by account.
    private(set) var unclosed: [UInt32: Int] = [:]
    private(set) var hasEnded = false
    private let closed: (_ account: UInt32) -> Void
    private let ended: () -> Void

    /// Closes under way at one time; further ones wait for one of them to end.
    static let closers: UInt32 = 8

    /// `closed` hears each file's account when it is closed, `ended` that the child has ended.
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

    /// Gives a file away and closes it here. When that throws it is still the caller's: EAGAIN, there is no room now;
    /// ETOOMANYREFS, the kernel does not send it.
    func give(_ file: Int32, account: UInt32) throws(SystemError) {
        let message = withUnsafeBytes(of: account) { Array($0) }
        try SystemCalls.send(bin.first.raw, message, files: [file], wait: false)
        close(file)
        unclosed[account, default: 0] += 1
        owed += 1
        tell()
    }

    /// Says that the child may take what lies in the bin; when there is no room for that, the next call says it.
    func tell() {
        guard owed > 0, let orders = orders?.raw else { return }
        let message = withUnsafeBytes(of: owed) { Array($0) }
        if (try? SystemCalls.send(orders, message, wait: false)) != nil { owed = 0 }
    }

    var pid: Int32 { process.pid }

    /// The child does not know yet that there is more.
    var isOwing: Bool { owed > 0 && orders != nil }

    /// Nothing more will be given. The child ends when all is closed; this object must be kept until `ended`.
    func dismiss() {
        guard let file = orders.take() else { return }
        for watch in watches where watch.fd == file.raw { loop.unwatch(watch) }
        watches.removeAll { $0.fd == file.raw }
    }

    /// Where the files come out: whoever holds that last closes what lies there.
    var descriptor: Int32 { bin.second.raw }

    /// A file that the child did not take before it ended, now the caller's again; nil when there is none left.
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
