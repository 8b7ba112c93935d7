import CLauncher
import Glibc
import SystemCalls

/// A child that holds only a few files, does one thing with them, and ends (`ubd_undertake`).
final class ShortChild {
    /// The maximum number of files per child (launcher.c).
    static let mostFiles = 63
    /// Milliseconds between two looks at a child that can't be watched.
    private static let pause = 100

    private let process: ProcessHandle
    private var report: FileDescriptor?
    private var watch: EventLoop.Watch?

    /// The child waits until the caller has closed its own copies and calls `goOn`. `texts`: what it writes
    /// (`ubd_undertake`); nil: it only closes the files.
    init(_ files: [Int32], _ texts: CStrings?) throws(SystemError) {
        var child = ubd_child()
        let result = withExtendedLifetime(texts) { ubd_undertake(files, texts?.pointer, UInt32(files.count), &child) }
        guard result == 0 else { throw SystemError("start a child", -result) }
        report = FileDescriptor(owning: child.report)
        process = ProcessHandle(pid: child.pid, owning: FileDescriptor(owning: child.pidfd))
    }

    /// `ended` gets the child's exit status, ECANCELED when it was killed. Keep this object until then.
    func goOn(_ loop: EventLoop, _ ended: @escaping (Int32) -> Void) {
        report = nil
        do throws(SystemError) {
            watch = try loop.watch(process.file.raw, .readable) { [weak self] _ in _ = self?.look(loop, ended) }
        } catch {
            // No memory for a watch, or too many of root's: its end must be heard all the same.
            lookAgain(loop, ended)
        }
    }

    /// False while it has not ended.
    private func look(_ loop: EventLoop, _ ended: (Int32) -> Void) -> Bool {
        guard let change = try? process.poll() else { return false }
        if let watch { loop.unwatch(watch) }
        watch = nil
        if case .exited(let status) = change { ended(status) } else { ended(ECANCELED) }
        return true
    }

    private func lookAgain(_ loop: EventLoop, _ ended: @escaping (Int32) -> Void) {
        loop.after(milliseconds: ShortChild.pause) { [weak self] in
            guard let self, !look(loop, ended) else { return }
            lookAgain(loop, ended)
        }
    }
}

/// Children that write settings in /sys/block/ublkbN/queue, one child per disk: such a write waits for the disk's
/// requests, one of which may never end.
final class SettingsWriters {
    /// Identifies a child that writes settings.
    struct Writing { fileprivate let number: UInt64 }

    private struct Entry {
        let child: ShortChild
        let account: UInt32
        /// It counts as hanging.
        var isCharged: Bool
    }

    /// Concurrent children of one account, and of all accounts.
    static let mostOfAccount = 8
    static let most = 64

    private let loop: EventLoop
    private var entries: [UInt64: Entry] = [:]
    private var nextNumber: UInt64 = 0

    init(loop: EventLoop) {
        self.loop = loop
    }

    /// Children of this account that count as hanging.
    func hanging(_ account: UInt32) -> Int { entries.values.count { $0.account == account && $0.isCharged } }

    /// Lets a child write the settings that differ, in order. `ended` gets the errno of the last failed write, or 0,
    /// when the child has ended, however late. Throws EAGAIN when too many such children hang.
    func write(
        _ settings: [QueueSettings.Setting], in folder: String, account: UInt32, ended: @escaping (Int32) -> Void
    ) throws(SystemError) -> Writing {
        let ofAccount = entries.values.count { $0.account == account }
        guard ofAccount < SettingsWriters.mostOfAccount, entries.count < SettingsWriters.most else {
            throw SystemError("\(ofAccount) children of this user and \(entries.count) in all wait for disks", EAGAIN)
        }
        var files: [Int32] = []
        defer { for file in files { close(file) } }
        for setting in settings {
            files.append(try FileDescriptor.open("\(folder)/\(setting.name)", O_RDWR).release())
        }
        let child = try ShortChild(files, CStrings(settings.flatMap { [$0.text, $0.already] }))
        let number = nextNumber
        nextNumber += 1
        entries[number] = Entry(child: child, account: account, isCharged: false)
        // Before the child goes on, so that its close is the last one.
        for file in files { close(file) }
        files = []
        child.goOn(loop) { [weak self] status in
            self?.entries[number] = nil
            ended(status)
        }
        return Writing(number: number)
    }

    /// From now on the child counts as hanging until it ends.
    func charge(_ writing: Writing) {
        entries[writing.number]?.isCharged = true
    }
}
