/// Schedules clients' work in fair turns. A round takes one piece of work from each party, and between two rounds the
/// loop handles everything else. So the work of one user delays another user by one piece at a time. Users to whom the
/// policy gives nothing are one party and take turns among themselves. So are connections of users in very many groups,
/// whose rights are not known yet.
struct Turns {
    enum Party: Hashable {
        case root
        case account(UInt32)
        case strangers
        case arrivals
    }

    typealias Work = () -> Void

    /// The work of a party: its accounts in the order of their turns, and each account's work in order of arrival.
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
    /// The parties that have work, in order of arrival.
    private var order: [Party] = []

    var isEmpty: Bool { order.isEmpty }

    mutating func add(_ party: Party, _ account: UInt32, _ work: @escaping Work) {
        if lines[party] == nil {
            lines[party] = Line()
            // Root goes first, since root has to repair things.
            if party == .root { order.insert(party, at: 0) } else { order.append(party) }
        }
        if lines[party]?.work[account] == nil { lines[party]?.accounts.append(account) }
        lines[party]?.work[account, default: []].append(work)
    }

    /// Takes the next piece of work from each party. The caller runs it, which may add more.
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
