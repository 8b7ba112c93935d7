import BrokerInterface

/// Decides which connections the broker keeps. Users to whom the policy gives nothing share a small part, all others
/// share the rest, and root is always admitted. When a part is full, its longest idle connection is closed.
struct Admission {
    enum Standing: Hashable {
        case root
        /// A line of the policy may allow the user something, or the user has a device.
        case permitted
        case stranger
    }

    /// A connection's properties that the decision needs.
    struct Candidate<Key> {
        let key: Key
        let account: UInt32
        let standing: Standing
        /// The last activity, in monotonic nanoseconds.
        let lastActive: UInt64
        /// A call is running, so this connection is never closed for another one.
        let isBusy: Bool
    }

    enum Verdict<Key> {
        case keep
        /// Keep it, and close this longest idle one.
        case keepInsteadOf(Key)
        case refuse(InterfaceError)
    }

    /// The maximum number of connections of one account, and of all accounts of a standing. Root may exceed its
    /// numbers; from there on root's idle connections are closed.
    static func mostOfAccount(_ standing: Standing) -> Int {
        switch standing {
        case .root: 64
        case .permitted: 16
        case .stranger: 8
        }
    }
    static func most(_ standing: Standing) -> Int {
        switch standing {
        case .root: 64
        case .permitted: 224
        case .stranger: 32
        }
    }

    /// Connections of one account that may wait for the lookup of its groups: as many as a permitted account may have.
    static let mostArrivals = mostOfAccount(.permitted)

    /// The error for further ones, and its reply, which is encoded only once because there can be very many.
    static let tooManyArrivals: (error: InterfaceError, reply: [UInt8]) = {
        let error = InterfaceError.limitReached(
            message: "\(mostArrivals) connections of one user wait to be admitted already",
            remedy: "try again in a moment", limit: "user-connections", value: Int64(mostArrivals))
        return (error, error.reply.message)
    }()

    /// Nanoseconds without activity after which a connection may be closed for another one: a client that has just
    /// connected is about to call.
    static let idleTime: UInt64 = 1_000_000_000

    /// `hanging`: the account's files that are not closed yet, which count as connections. `isQuiet`: the connection
    /// has no unread data.
    static func decide<Key>(
        account: UInt32, standing: Standing, hanging: Int, among all: () -> [Candidate<Key>],
        counts: (ofAccount: Int, ofStanding: Int), now: UInt64, isQuiet: (Key) -> Bool
    ) -> Verdict<Key> {
        let ofAccount = counts.ofAccount + hanging
        let isUserCrowded = ofAccount >= mostOfAccount(standing)
        guard isUserCrowded || counts.ofStanding >= most(standing) else { return .keep }
        let idle = all().filter { candidate in
            candidate.standing == standing && !candidate.isBusy && candidate.lastActive + idleTime <= now
                && (!isUserCrowded || candidate.account == account)
        }
        if let victim = idlest(idle, isQuiet) { return .keepInsteadOf(victim) }
        if standing == .root { return .keep }
        return .refuse(isUserCrowded ? userLimit(standing, hanging) : limit(standing))
    }

    /// The longest idle connection of the account with the most connections.
    private static func idlest<Key>(_ idle: [Candidate<Key>], _ isQuiet: (Key) -> Bool) -> Key? {
        let counts = Dictionary(idle.map { ($0.account, 1) }, uniquingKeysWith: +)
        let ordered = idle.sorted {
            let (one, other) = (counts[$0.account] ?? 0, counts[$1.account] ?? 0)
            return one == other ? $0.lastActive < $1.lastActive : one > other
        }
        return ordered.first { isQuiet($0.key) }?.key
    }

    private static func userLimit(_ standing: Standing, _ hanging: Int) -> InterfaceError {
        let most = mostOfAccount(standing)
        let closes = hanging > 0 ? ", including \(hanging) of your files that are not closed yet" : ""
        return .limitReached(
            message: "the limit of \(most) connections of one user is reached\(closes)",
            remedy: "try again when some of your calls have ended", limit: "user-connections", value: Int64(most))
    }

    private static func limit(_ standing: Standing) -> InterfaceError {
        let whom = standing == .stranger ? "users without a right to a device" : "users"
        return .limitReached(
            message: "the limit of \(most(standing)) connections of \(whom) is reached",
            remedy: "try again in a moment", limit: "connections", value: Int64(most(standing)))
    }
}
