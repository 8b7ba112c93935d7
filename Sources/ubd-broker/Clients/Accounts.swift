import Glibc
import SystemCalls

/// Which account a uid belongs to: its own, or the one to which /etc/subuid gives it (subuid(5)). An account that may use
/// 65,536 uids is one account in whatever is counted by user. Group ids don't matter here: nothing is counted by group.
///
/// The uids that root has there are those of containers that root starts. They are not root, for whom nothing is counted, but
/// one account of their own: the first such uid.
struct Accounts {
    /// Uids `first..<end` belong to `owner`.
    struct Range: Equatable {
        let first: UInt32
        /// One more than the last; 2^32 at most.
        let end: UInt64
        let owner: UInt32
    }

    /// By `first`; none overlaps another one.
    private(set) var ranges: [Range] = []
    /// What root's count as; nil when there are none.
    private var accountOfRoots: UInt32?
    /// What is wrong with the file, in words: its first fault, and how many lines are left out for such.
    private(set) var problem: String?

    static let file = "/etc/subuid"
    /// Bytes and lines of the file that are looked at. More is no failure: what lies behind counts as separate users.
    static let longest = 1 << 20
    static let mostLines = 4096

    /// Each uid is an account.
    init() {}

    /// Reads lines "owner:first:count"; `user` finds the uid of a name. A damaged line is left out. So is a range that
    /// touches uid 0, its own owner or an earlier range.
    init(parsing bytes: [UInt8], user: (String) -> UInt32?) {
        var faults = 0
        var first: String?
        let lines = bytes.prefix(Accounts.longest).split(
            separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
        for (index, line) in lines.prefix(Accounts.mostLines).enumerated() {
            guard let fault = add(String(decoding: line, as: UTF8.self), user) else { continue }
            faults += 1
            if first == nil { first = "line \(index + 1): \(fault)" }
        }
        if bytes.count > Accounts.longest || lines.count > Accounts.mostLines {
            problem = "it is longer than \(Accounts.mostLines) lines or \(Accounts.longest) bytes"
        }
        if let first { problem = (problem.map { $0 + "; " } ?? "") + "\(first); lines left out: \(faults)" }
    }

    /// The host's. A file that is missing or not root's is none.
    static func ofHost() -> Accounts {
        var accounts = Accounts()
        do throws(TrustedFile.Distrust) {
            let bytes = try TrustedFile.read(Accounts.file, limit: Accounts.longest)
            accounts = Accounts(parsing: bytes) { getpwnam($0)?.pointee.pw_uid }
        } catch { accounts.problem = error.description }
        return accounts
    }

    func account(of uid: UInt32) -> UInt32 {
        // The last range that begins at or below the uid.
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].first <= uid { low = middle + 1 } else { high = middle }
        }
        guard low > 0, uid < ranges[low - 1].end else { return uid }
        return ranges[low - 1].owner
    }

    /// What is wrong with a line; nil when it is taken or empty.
    private mutating func add(_ line: String, _ user: (String) -> UInt32?) -> String? {
        if line.isEmpty || line.hasPrefix("#") { return nil }
        let fields = line.split(separator: ":", omittingEmptySubsequences: false)
        guard fields.count == 3, let first = Accounts.number(fields[1]), let count = Accounts.number(fields[2]),
            count > 0, first > 0, first + count <= 1 << 32
        else { return "not 'owner:first:count' of uids above 0" }
        let name = String(fields[0])
        guard let owner = Accounts.number(fields[0]).flatMap({ UInt32(exactly: $0) }) ?? user(name) else {
            return "there is no user '\(name)'"
        }
        if owner >= first, UInt64(owner) < first + count { return "the range has its owner in it" }
        let account = owner == 0 ? accountOfRoots ?? UInt32(first) : owner
        let range = Range(first: UInt32(first), end: first + count, owner: account)
        let index = ranges.firstIndex { $0.first > range.first } ?? ranges.count
        let isApart =
            (index == 0 || ranges[index - 1].end <= first)
            && (index == ranges.count || UInt64(ranges[index].first) >= range.end)
        guard isApart else { return "the range overlaps an earlier one" }
        ranges.insert(range, at: index)
        if owner == 0 { accountOfRoots = account }
        return nil
    }

    private static func number(_ text: Substring) -> UInt64? {
        guard text.utf8.count <= 10, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
        return UInt64(text)
    }
}
