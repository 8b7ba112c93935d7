import Glibc

/// Who listens at the other end of a connected Unix socket. A client gives the broker open files, so it has to be root's, or at least
/// the client's own: another user's program would take them. The path alone does not tell: it may come from the environment.
public struct Listener: Equatable, Sendable {
    /// The number of the user as this process sees it.
    public let uid: UInt32

    /// SO_PEERCRED: who called listen(2), unix(7).
    public init(of socket: Int32) throws(SystemError) { uid = try PeerCredentials(withoutGroupsOf: socket).uid }

    /// Root or this process's own user.
    public var isTrusted: Bool {
        isTrusted(by: geteuid(), overflow: Self.overflow) { try? readFile("/proc/self/uid_map") }
    }

    /// In a user namespace without the host's root, as in a container, that root has the overflow number, as all other users of the
    /// host have (user_namespaces(7)): nobody can tell them apart there. `map`: of the namespace; nil when it is not known.
    func isTrusted(by own: UInt32, overflow: UInt32, map: () -> [UInt8]?) -> Bool {
        if uid == 0 || uid == own { return true }
        guard uid == overflow, let map = map() else { return false }
        return map.split(whereSeparator: { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\n") })
            .map { String(decoding: $0, as: UTF8.self) } != ["0", "0", "4294967295"]
    }

    /// For tests.
    init(uid: UInt32) { self.uid = uid }

    /// DEFAULT_OVERFLOWUID; nobody changes /proc/sys/kernel/overflowuid today.
    private static let overflow: UInt32 = 65534
}
