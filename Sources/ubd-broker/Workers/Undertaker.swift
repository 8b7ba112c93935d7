import CLauncher
import Glibc
import SystemCalls

/// Delegates to children what a stranger can make block forever: closing sockets that may hold the stranger's files (a
/// lingering socket, a hung disk, a FUSE server that stopped), and writing settings of the stranger's device
/// (`SettingsWriters`).
///
/// Each account has one closing child while there is work; users to whom the policy gives nothing share one. Files that
/// are not closed yet count against the account, as connections and as devices. A file that no child can take (no
/// process, no descriptor, no room) is kept and tried again.
final class Undertaker {
    /// Whose child closes a file.
    private enum Owner: Hashable {
        case account(UInt32)
        case strangers
    }

    /// A file that no child has taken yet.
    private struct Kept {
        let file: Int32
        let account: UInt32
        let owner: Owner
    }

    /// The maximum number of accounts with a child of their own; further accounts share the strangers' child.
    private static let mostChildren = 64
    /// Children that hold one file each, for files that cannot be sent.
    private static let mostSingles = 16
    /// Milliseconds for which an idle child is kept.
    private static let idle = 500
    /// Milliseconds between attempts to pass on kept files: the back-off's first and last pause.
    private static let pauses = 100...5_000

    private let loop: EventLoop
    /// Returns the account of a uid.
    private let account: (UInt32) -> UInt32
    private var closing: [Owner: ClosingChild] = [:]
    /// Children that have been told to end.
    private var leaving: [ObjectIdentifier: ClosingChild] = [:]
    private var singles: [ObjectIdentifier: ShortChild] = [:]
    /// Files that are not closed yet, by account.
    private var unclosed: [UInt32: Int] = [:]
    private var kept: [Kept] = []
    /// The number of kept files by owner.
    private var keptOf: [Owner: Int] = [:]
    private var retry: EventLoop.Timer?
    private var pause = Undertaker.pauses.lowerBound
    let writers: SettingsWriters

    init(loop: EventLoop, account: @escaping (UInt32) -> UInt32 = { $0 }) {
        self.loop = loop
        self.account = account
        writers = SettingsWriters(loop: loop)
    }

    deinit {
        // At the broker's end `leave` has put harmless files under these numbers.
        for file in kept { close(file.file) }
    }

    /// What hangs or is not closed yet for this user.
    func waiting(for uid: UInt32) -> Int {
        let account = account(uid)
        return (unclosed[account] ?? 0) + writers.hanging(account)
    }

    /// Closes a socket of a client or worker: at once when it holds no unread data, otherwise through a child. A child closes
    /// everything else that systemd's store may have, too: a TCP socket with SO_LINGER waits although nothing is unread.
    /// `isStranger`: the policy gives the user nothing.
    func letGo(_ socket: consuming FileDescriptor, owner: UInt32, isStranger: Bool = false) {
        if (try? option(socket.raw, SO_DOMAIN)) == AF_UNIX {
            shutdown(socket.raw, Int32(SHUT_RDWR))
            // After the shutdown no more data can arrive.
            if drain(socket.raw) { return }
        }
        let account = account(owner)
        unclosed[account, default: 0] += 1
        bury(Kept(file: socket.release(), account: account, owner: isStranger ? .strangers : .account(account)))
    }

    private func bury(_ file: Kept) {
        do throws(SystemError) {
            if keptOf[file.owner] != nil { throw SystemError("wait for its turn", EAGAIN) }
            try give(file)
        } catch { keep(file, because: error) }
    }

    private func give(_ file: Kept) throws(SystemError) {
        do throws(SystemError) {
            let child = try child(for: file.owner)
            try child.give(file.file, account: file.account)
            if child.isOwing, retry == nil { tryLater() }
        } catch {
            // A file with sockets nested too deeply for the kernel to send. A child inherits it instead.
            guard error.errno == ETOOMANYREFS, singles.count < Undertaker.mostSingles else { throw error }
            try inherit(file)
        }
    }

    private func child(for owner: Owner) throws(SystemError) -> ClosingChild {
        let isOneTooMany = closing[owner] == nil && closing.count >= Undertaker.mostChildren
        let owner = isOneTooMany ? .strangers : owner
        if let child = closing[owner] { return child }
        let child = try ClosingChild(
            loop: loop, closed: { [weak self] account in self?.closed(account, of: owner) },
            ended: { [weak self] in self?.ended(owner) })
        closing[owner] = child
        return child
    }

    private func inherit(_ file: Kept) throws(SystemError) {
        let child = try ShortChild([file.file], nil)
        close(file.file)
        singles[ObjectIdentifier(child)] = child
        child.goOn(loop) { [weak self, unowned child] _ in
            self?.singles[ObjectIdentifier(child)] = nil
            self?.forget(file.account)
        }
    }

    // MARK: Ends

    private func forget(_ account: UInt32) {
        unclosed[account, default: 1] -= 1
        if unclosed[account]! <= 0 { unclosed[account] = nil }
    }

    private func closed(_ account: UInt32, of owner: Owner) {
        forget(account)
        guard let child = closing[owner], child.unclosed.isEmpty else { return }
        loop.after(milliseconds: Undertaker.idle) { [weak self, weak child] in
            guard let self, let child, child.unclosed.isEmpty, closing[owner] === child else { return }
            closing[owner] = nil
            leaving[ObjectIdentifier(child)] = child
            child.dismiss()
        }
    }

    /// A child has ended: either it was told to, or it was killed, and then its remaining files go to the next one.
    private func ended(_ owner: Owner) {
        leaving = leaving.filter { !$0.value.hasEnded }
        guard let child = closing[owner], child.hasEnded else { return }
        closing[owner] = nil
        Log.error("undertaker", ("why", "a child that closes files was killed"), ("pid", "\(child.pid)"))
        while let (file, account) = child.takeBack() {
            keep(Kept(file: file, account: account, owner: owner), because: SystemError("take back", EAGAIN))
        }
        // The child's end has closed these.
        for (account, count) in child.unclosed {
            for _ in 0..<count { forget(account) }
        }
    }

    // MARK: Kept files

    private func keep(_ file: Kept, because error: SystemError) {
        if kept.isEmpty, error.errno != EAGAIN {
            Log.error("undertaker", ("errno", SystemError.name(error.errno)), ("what", "it will be tried again"))
        }
        kept.append(file)
        keptOf[file.owner, default: 0] += 1
        if retry == nil { tryLater() }
    }

    private func tryLater() {
        retry = loop.after(milliseconds: pause) { [weak self] in
            self?.retry = nil
            self?.tryAgain()
        }
    }

    private func tryAgain() {
        for child in closing.values { child.tell() }
        var rest: [Kept] = []
        // A child without room must not delay the files of others.
        var full: Set<Owner> = []
        for file in kept {
            if full.contains(file.owner) {
                rest.append(file)
                continue
            }
            do throws(SystemError) { try give(file) } catch {
                full.insert(file.owner)
                rest.append(file)
            }
        }
        pause = rest.count < kept.count ? Undertaker.pauses.lowerBound : min(pause * 2, Undertaker.pauses.upperBound)
        kept = rest
        keptOf = Dictionary(rest.map { ($0.owner, 1) }, uniquingKeysWith: +)
        if !kept.isEmpty || closing.values.contains(where: \.isOwing) { tryLater() }
    }

    var children: [Int32] { closing.values.map(\.pid) + leaving.values.map(\.pid) }

    // MARK: The broker's end

    /// Descriptors whose close may be the last close of somebody's files.
    var descriptors: [Int32] {
        kept.map(\.file) + closing.values.map(\.descriptor) + leaving.values.map(\.descriptor)
    }

    /// At the broker's end: leaves files, whose last close might block, to a child for which the broker does not wait.
    /// The numbers stay open on harmless files, since their owners will close them.
    static func leave(_ files: [Int32]) {
        var rest = files[...]
        while !rest.isEmpty {
            let some = Array(rest.prefix(ShortChild.mostFiles))
            rest = rest.dropFirst(ShortChild.mostFiles)
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

    /// Returns whether a Unix socket is empty, so that closing it cannot block.
    private func drain(_ fd: Int32) -> Bool {
        // A few pieces of this size hold all that fits into a stream's buffer.
        withUnsafeTemporaryAllocation(byteCount: 1 << 16, alignment: 1) { scratch in
            for _ in 0..<64 {
                switch (try? receiveWithoutFiles(fd, into: scratch)) ?? .filesAttached {
                case .bytes: continue
                case .closed, .wouldBlock: return true
                case .filesAttached, .tooLong: return false
                }
            }
            return false
        }
    }
}
