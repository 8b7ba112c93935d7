import CLauncher
import Glibc
import SystemCalls

/// A child that holds a few files and nothing else, does one thing with them, and ends (`ubd_undertake`).
final class ShortChild {
    /// So many files fit one child (launcher.c).
    static let mostFiles = 63

    private let process: ProcessHandle
    private var report: FileDescriptor?
    private var watch: EventLoop.Watch?

    /// The child waits until the caller has closed its own copies and calls `goOn`. `texts`: what it shall write
    /// (`ubd_undertake`); nil: it only lets go of the files.
    init(_ files: [Int32], _ texts: CStrings?) throws(SystemError) {
        var child = ubd_child()
        let result = withExtendedLifetime(texts) { ubd_undertake(files, texts?.pointer, UInt32(files.count), &child) }
        guard result == 0 else { throw SystemError("start a child", -result) }
        report = FileDescriptor(owning: child.report)
        process = ProcessHandle(pid: child.pid, owning: FileDescriptor(owning: child.pidfd))
    }

    /// `ended` is told the child's exit status, ECANCELED when it was killed. This object must be kept until then.
    func goOn(_ loop: EventLoop, _ ended: @escaping (Int32) -> Void) {
        report = nil
        watch = try? loop.watch(process.file.raw, .readable) { [weak self] _ in
            guard let self, let change = try? process.poll() else { return }
            if let watch { loop.unwatch(watch) }
            watch = nil
            if case .exited(let status) = change { ended(status) } else { ended(ECANCELED) }
        }
    }
}

/// Children that write settings of disks in /sys/block/ublkbN/queue, one a disk: such a write waits for the disk's requests,
/// of which one may never end.
final class SettingsWriters {
    /// A child that writes settings.
    struct Writing { fileprivate let number: UInt64 }

    private struct Entry {
        let child: ShortChild
        let account: UInt32
        /// It counts as one that hangs.
        var isCharged: Bool
    }

    /// Children at one time for one account, and for all together.
    static let mostOfAccount = 8
    static let most = 64

    private let loop: EventLoop
    private var entries: [UInt64: Entry] = [:]
    private var nextNumber: UInt64 = 0

    init(loop: EventLoop) {
        self.loop = loop
    }

    /// Children that hang for this account's sake.
    func hanging(_ account: UInt32) -> Int { entries.values.count { $0.account == account && $0.isCharged } }

    /// Has settings written that are not so already, in their order. `ended` is told the last errno that came out, 0 if none,
    /// when the child has ended, however late that is. EAGAIN: too many such children hang.
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
        // Before the child goes on.
        for file in files { close(file) }
        files = []
        child.goOn(loop) { [weak self] status in
            self?.entries[number] = nil
            ended(status)
        }
        return Writing(number: number)
    }

    /// From now on a child that has not ended counts as one that hangs.
    func charge(_ writing: Writing) {
        entries[writing.number]?.isCharged = true
    }
}
