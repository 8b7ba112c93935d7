import Glibc
import SystemCalls

/// Maps a uid to its account: the uid itself, or the user to whom /etc/subuid gives it (subuid(5)). An account with
/// 65,536 subordinate uids is one account in everything that is counted by user. Group ids do not matter: nothing is
/// counted by group.
///
/// Root's subordinate uids belong to containers that root starts. They do not count as root, for whom nothing is
/// counted, but as one account of their own: the first such uid.
struct Accounts {
    /// The uids `first..<end` belong to `owner`.
    struct Range: Equatable {
        let first: UInt32
        /// The last uid plus one, at most 2^32.
        let end: UInt64
        let owner: UInt32
    }

    /// Sorted by `first`, without overlaps.
    private(set) var ranges: [Range] = []
    /// The account of root's subordinate uids; nil when there are none.
    private var accountOfRoots: UInt32?
    /// What is wrong with the file: its first fault, and how many lines were skipped.
    private(set) var problem: String?

    static let file = "/etc/subuid"
    /// Maximum bytes and lines of the file to read. Uids in the rest of a longer file count as separate users.
    static let longest = 1 << 20
    static let mostLines = 4096

    /// Every uid is an account.
    init() {}

    /// Parses lines "owner:first:count"; `user` returns the uid of a name. It skips malformed lines, and ranges that
    /// contain uid 0 or their owner or overlap an earlier range.
    init(parsing bytes: [UInt8], user: (String) throws(SystemError) -> UInt32?) {
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

    /// The host's accounts. A file that is missing or not root's has no ranges.
    static func ofHost() -> Accounts {
        var accounts = Accounts()
        do throws(TrustedFile.Distrust) {
            let bytes = try TrustedFile.read(Accounts.file, limit: Accounts.longest)
            accounts = Accounts(parsing: bytes) { (name) throws(SystemError) in try AccountNames.user(name) }
        } catch { accounts.problem = error.description }
        return accounts
    }

    func account(of uid: UInt32) -> UInt32 {
        // Finds the last range that begins at or below the uid.
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].first <= uid { low = middle + 1 } else { high = middle }
        }
        guard low > 0, uid < ranges[low - 1].end else { return uid }
        return ranges[low - 1].owner
    }

    /// Adds a line's range. Returns what is wrong with the line; nil when it was added or is empty.
    private mutating func add(_ line: String, _ user: (String) throws(SystemError) -> UInt32?) -> String? {
        if line.isEmpty || line.hasPrefix("#") { return nil }
        let fields = line.split(separator: ":", omittingEmptySubsequences: false)
        guard fields.count == 3, let first = Accounts.number(fields[1]), let count = Accounts.number(fields[2]),
            count > 0, first > 0, first + count <= 1 << 32
        else { return "not 'owner:first:count' of uids above 0" }
        let name = String(fields[0])
        var number = Accounts.number(fields[0]).flatMap { UInt32(exactly: $0) }
        do throws(SystemError) {
            if number == nil { number = try user(name) }
        } catch { return "its owner can not be looked up: \(error)" }
        guard let owner = number else { return "there is no user '\(name)'" }
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
