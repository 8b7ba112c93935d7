import CLauncher
import Glibc
import SystemCalls

/// Does what a stranger can make block for ever, in a throwaway child: lets go of files that he may have filled with other
/// files (a lingering socket, a hung disk, a FUSE server that stopped), and writes settings of his device.
final class Undertaker {
    private let loop: EventLoop
    /// Children that have not ended yet, by owner: a stuck one counts against its owner's quota.
    private var stuck: [UInt32: Int] = [:]
    private var nextNumber: UInt64 = 0
    /// Kept while the child lives.
    private var children: [UInt64: Child] = [:]

    private final class Child {
        let process: ProcessHandle
        /// Whom it counts against.
        var owner: UInt32?
        var watch: EventLoop.Watch?
        /// Told the errno of what it wrote, or 0.
        var ended: ((Int32) -> Void)?

        init(process: consuming ProcessHandle, owner: UInt32?) {
            self.process = process
            self.owner = owner
        }
    }

    init(loop: EventLoop) {
        self.loop = loop
    }

    /// Children that hang for this owner's sake.
    func waiting(for owner: UInt32) -> Int { stuck[owner] ?? 0 }

    /// Closes a socket of a client or worker: at once when nothing is left unread in it, through a child otherwise.
    func letGo(_ socket: consuming FileDescriptor, owner: UInt32) {
        shutdown(socket.raw, Int32(SHUT_RDWR))
        // What came until now is all that will ever come.
        if drain(socket.raw) { return }
        bury(socket, owner: owner)
    }

    /// Closes a parking end, in which files lie by design.
    func bury(_ file: consuming FileDescriptor, owner: UInt32) {
        var raw = file.raw
        var child = ubd_child()
        let result = ubd_undertake(&raw, nil, 1, &child)
        guard result == 0 else {
            // Without a child the file stays open: a descriptor lost is better than a broker lost.
            Log.error("undertaker", ("errno", SystemError.name(-result)), ("lost-descriptor", "\(file.raw)"))
            _ = file.release()
            return
        }
        close(file.release())
        close(child.report)
        remember(ProcessHandle(pid: child.pid, owning: FileDescriptor(owning: child.pidfd)), owner: owner)
    }

    /// A child that writes settings.
    struct Writing { fileprivate let number: UInt64 }

    /// Has settings written that are not so already, in their order. `ended` is told the last errno that came out, 0 if none,
    /// when the child has ended, however late that is. It counts against nobody until somebody is charged with it.
    func write(
        _ settings: [QueueSettings.Setting], in folder: String, ended: @escaping (Int32) -> Void
    ) throws(SystemError) -> Writing {
        var files: [Int32] = []
        defer { for file in files { close(file) } }
        for setting in settings {
            files.append(try FileDescriptor.open("\(folder)/\(setting.name)", O_RDWR).release())
        }
        var child = ubd_child()
        let strings = CStrings(settings.flatMap { [$0.text, $0.already] })
        let result = withExtendedLifetime(strings) {
            ubd_undertake(files, strings.pointer, UInt32(files.count), &child)
        }
        guard result == 0 else { throw SystemError("start a child", -result) }
        // Before the report, whose end is the child's word to go on.
        for file in files { close(file) }
        files = []
        close(child.report)
        let process = ProcessHandle(pid: child.pid, owning: FileDescriptor(owning: child.pidfd))
        return Writing(number: remember(process, owner: nil, ended))
    }

    /// Counts a child that has not ended against a user, as one who hangs.
    func charge(_ writing: Writing, to owner: UInt32) {
        guard let child = children[writing.number], child.owner == nil else { return }
        child.owner = owner
        stuck[owner, default: 0] += 1
    }

    /// The broker's end: files that it would otherwise close last, and then might never end, are left to a child that the
    /// broker does not wait for. The numbers stay open, on something harmless, for those who will close them.
    static func leave(_ files: [Int32]) {
        var rest = files[...]
        while !rest.isEmpty {
            let some = Array(rest.prefix(mostFiles))
            rest = rest.dropFirst(mostFiles)
            var child = ubd_child()
            let result = ubd_undertake(some, nil, UInt32(some.count), &child)
            guard result == 0 else {
                Log.error("undertaker", ("errno", SystemError.name(-result)))
                continue
            }
            // The child goes on when the last of these is closed.
            for file in some { dup2(child.report, file) }
            close(child.report)
        }
    }

    /// So many fit one child (launcher.c).
    private static let mostFiles = 63

    /// True when the socket holds no more: closing it can't block.
    private func drain(_ fd: Int32) -> Bool {
        var scratch = [UInt8](repeating: 0, count: 4096)
        for _ in 0..<64 {
            let received = scratch.withUnsafeMutableBytes { buffer in
                (try? receiveWithoutFiles(fd, into: buffer)) ?? .filesAttached
            }
            switch received {
            case .bytes: continue
            case .closed, .wouldBlock: return true
            case .filesAttached, .tooLong: return false
            }
        }
        return false
    }

    @discardableResult
    private func remember(
        _ process: consuming ProcessHandle, owner: UInt32?, _ ended: ((Int32) -> Void)? = nil
    ) -> UInt64 {
        let number = nextNumber
        nextNumber += 1
        let child = Child(process: process, owner: owner)
        child.ended = ended
        if let owner { stuck[owner, default: 0] += 1 }
        children[number] = child
        child.watch = try? loop.watch(child.process.file.raw, .readable) { [unowned self] _ in self.reap(number) }
        return number
    }

    private func reap(_ number: UInt64) {
        guard let child = children[number], let change = try? child.process.poll() else { return }
        if let watch = child.watch { loop.unwatch(watch) }
        children[number] = nil
        if let owner = child.owner {
            stuck[owner, default: 1] -= 1
            if stuck[owner] == 0 { stuck[owner] = nil }
        }
        if case .exited(let status) = change { child.ended?(status) } else { child.ended?(ECANCELED) }
    }
}
