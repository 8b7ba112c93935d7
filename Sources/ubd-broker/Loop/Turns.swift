/// Work that clients ask for, done in fair turns. A round is one piece of work for each party, and between two rounds the
/// loop looks after everything else. So what one user asks for costs another one a single piece of work at a time,
/// however much it is. Those to whom the policy gives nothing are one party, and take turns among themselves. So are the
/// connections of users in very many groups, of which nobody has found out yet whether the policy gives them anything.
struct Turns {
    enum Party: Hashable {
        case root
        case account(UInt32)
        case strangers
        case arrivals
    }

    typealias Work = () -> Void

    /// One party's work: accounts in the order of their turns, each with its work in the order in which it came.
    private struct Line {
        var accounts: [UInt32] = []
        var work: [UInt32: [Work]] = [:]

        mutating func takeNext() -> Work? {
            guard let account = accounts.first, var mine = work[account] else { return nil }
            accounts.removeFirst()
            let next = mine.removeFirst()
            work[account] = mine.isEmpty ? nil : mine
            if !mine.isEmpty { accounts.append(account) }
            return next
        }
    }

    private var lines: [Party: Line] = [:]
    /// Parties that have work, in the order in which they got some.
    private var order: [Party] = []

    var isEmpty: Bool { order.isEmpty }

    mutating func add(_ party: Party, _ account: UInt32, _ work: @escaping Work) {
        if lines[party] == nil {
            lines[party] = Line()
            // Root is the one who has to mend things.
            if party == .root { order.insert(party, at: 0) } else { order.append(party) }
        }
        if lines[party]?.work[account] == nil { lines[party]?.accounts.append(account) }
        lines[party]?.work[account, default: []].append(work)
    }

    /// The next piece of work of each party. It is the caller's to do: it may add more.
    mutating func takeRound() -> [Work] {
        let round = order.compactMap { lines[$0]?.takeNext() }
        order.removeAll { party in
            guard lines[party]?.accounts.isEmpty != false else { return false }
            lines[party] = nil
            return true
        }
        return round
    }
}
