import BrokerInterface
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("Which connections are kept")
struct AdmissionTests {
    /// Connections by number, and the verdict for a further one.
    private struct Table {
        var all: [Admission.Candidate<Int>] = []
        var noisy: Set<Int> = []
        var hanging = 0
        let now: UInt64 = 100_000_000_000

        mutating func add(
            _ count: Int, _ account: UInt32, _ standing: Admission.Standing, idle: UInt64, busy: Bool = false
        ) {
            for _ in 0..<count {
                all.append(
                    Admission.Candidate(
                        key: all.count, account: account, standing: standing,
                        lastActive: now - idle * 1_000_000 - UInt64(all.count), isBusy: busy))
            }
        }

        /// "kept", "instead of N", or the limit that refuses it.
        func verdict(_ account: UInt32, _ standing: Admission.Standing) -> String {
            let verdict = Admission.decide(
                account: account, standing: standing, hanging: hanging, among: { all },
                counts: (all.count { $0.account == account }, all.count { $0.standing == standing }), now: now,
                isQuiet: { !noisy.contains($0) })
            switch verdict {
            case .keep: return "kept"
            case .keepInsteadOf(let key): return "instead of \(key)"
            case .refuse(.limitReached(_, _, let limit, let value)): return "\(limit) \(value)"
            case .refuse(let error): return "\(error)"
            }
        }
    }

    @Test("strangers who take all that they can leave the others' part, and root's, as it was")
    func strangers() {
        var table = Table()
        for account in 0..<100 where table.all.count < 32 { table.add(4, UInt32(2000 + account), .stranger, idle: 0) }
        #expect(table.verdict(3000, .stranger) == "connections 32")
        #expect(table.verdict(1000, .permitted) == "kept")
        #expect(table.verdict(0, .root) == "kept")
    }

    @Test("one user has 16 connections, one without a right 8, and the refusal says so")
    func oneUser() {
        var table = Table()
        table.add(16, 1000, .permitted, idle: 0)
        table.add(8, 2000, .stranger, idle: 0)
        #expect(table.verdict(1000, .permitted) == "user-connections 16")
        #expect(table.verdict(2000, .stranger) == "user-connections 8")
        #expect(table.verdict(1001, .permitted) == "kept")
        #expect(table.verdict(2001, .stranger) == "kept")
    }

    @Test("what hangs for a user's sake counts as connections")
    func hanging() {
        var table = Table()
        table.add(4, 1000, .permitted, idle: 0)
        table.hanging = 12
        #expect(table.verdict(1000, .permitted) == "user-connections 16")
        table.hanging = 11
        #expect(table.verdict(1000, .permitted) == "kept")
    }

    @Test("the idlest one makes room, of the user who has the most; never one with a call under way")
    func idlest() {
        var table = Table()
        table.add(28, 1000, .permitted, idle: 2000, busy: true)
        table.add(1, 1001, .permitted, idle: 9000)
        table.add(3, 1002, .permitted, idle: 3000)
        table.add(192, 1003, .permitted, idle: 0)
        #expect(table.all.count == Admission.most(.permitted))
        // The last of three has been idle longest by a nanosecond or two.
        #expect(table.verdict(1004, .permitted) == "instead of 31")
        table.noisy = [31]
        #expect(table.verdict(1004, .permitted) == "instead of 30")
        table.noisy = [29, 30, 31]
        #expect(table.verdict(1004, .permitted) == "instead of 28")
        table.noisy = [28, 29, 30, 31]
        #expect(table.verdict(1004, .permitted) == "connections 224")
    }

    @Test("nobody's idle connection makes room for one who stands otherwise", arguments: [32, 8])
    func ownStanding(strangers: Int) {
        var table = Table()
        // 32 of four accounts, or the 8 that one of them may have; all just used.
        for index in 0..<strangers { table.add(1, 2000 + UInt32(index / 8), .stranger, idle: 0) }
        let others = table.all.count
        table.add(3, 1000, .permitted, idle: 9000)
        table.add(1, 0, .root, idle: 20_000)
        // Of an account that may have devices, from a uid of its own that may not.
        table.add(2, 2000, .permitted, idle: 15_000)
        #expect(table.verdict(2000, .stranger) == "user-connections 8")
        #expect(table.verdict(3000, .stranger) == (strangers == 32 ? "connections 32" : "kept"))
        table.add(224 - 5, 1003, .permitted, idle: 0)
        // Of the account with three such connections; root's has been idle longer.
        #expect(table.verdict(1004, .permitted) == "instead of \(others + 2)")
        #expect(table.verdict(0, .root) == "kept")
    }

    @Test("one who has all that he may makes room for himself only")
    func ownRoom() {
        var table = Table()
        table.add(1, 1001, .permitted, idle: 9000)
        table.add(15, 1000, .permitted, idle: 0)
        table.add(1, 1000, .permitted, idle: 2000)
        #expect(table.verdict(1000, .permitted) == "instead of 16")
    }

    @Test("root gets in however many connections of root's there are, and all of them busy")
    func root() {
        var table = Table()
        table.add(1000, 0, .root, idle: 5000, busy: true)
        #expect(table.verdict(0, .root) == "kept")
        table.add(1, 0, .root, idle: 2000)
        #expect(table.verdict(0, .root) == "instead of 1000")
    }

    @Test("who owns a device or may have one has a part of his own; who has neither is a stranger")
    func standing() throws {
        let host = try Host(policy: "deny uid=1001 target=loop\nallow group=50 target=* \nallow uid=0 target=*\n")
        #expect(host.broker.standing(of: Host.root) == .root)
        #expect(host.broker.standing(of: Host.bob) == .permitted)
        #expect(host.broker.standing(of: Host.mallory) == .stranger)
        _ = try host.add().get()
        // The user has left the group since.
        var alice = Host.alice
        alice.groups = []
        #expect(host.broker.standing(of: alice) == .permitted)
        #expect(try host.delete(0) == nil)
        #expect(host.broker.standing(of: alice) == .stranger)
    }

    @Test("so is one who stands in for the account that owns the device")
    func standingOfAccount() throws {
        let accounts = Accounts(parsing: Array("1000:100000:65536\n".utf8)) { _ in nil }
        let host = try Host(policy: "allow uid=1000 target=*\n", accounts: accounts)
        let subordinate = PeerCredentials(pid: 200, uid: 100_005, gid: 100_005, groups: [])
        #expect(host.broker.standing(of: subordinate) == .stranger)
        _ = try host.add(as: Host.alice).get()
        #expect(host.broker.standing(of: subordinate) == .permitted)
    }
}

@Suite("Accounts")
struct AccountsTests {
    private func accounts(_ text: String) -> Accounts {
        Accounts(parsing: Array(text.utf8)) { ["alice": 1000, "bob": 1001][$0] }
    }

    @Test("the uids that /etc/subuid gives an account are that account")
    func subordinates() {
        let found = accounts("alice:100000:65536\n1001:165536:65536\n# a comment\n\nalice:300000:1\n")
        #expect(found.problem == nil)
        let wanted: [(UInt32, UInt32)] = [
            (0, 0), (1000, 1000), (99_999, 99_999), (100_000, 1000), (165_535, 1000), (165_536, 1001), (231_071, 1001),
            (231_072, 231_072), (300_000, 1000), (300_001, 300_001), (.max, .max),
        ]
        for (uid, account) in wanted { #expect(found.account(of: uid) == account, "\(uid)") }
    }

    @Test("those that it gives root are not root: they are one account of their own")
    func subordinatesOfRoot() {
        let found = Accounts(parsing: Array("root:100000:65536\nalice:200000:10\n0:300000:10\n".utf8)) {
            ["root": 0, "alice": 1000][$0]
        }
        #expect(found.problem == nil)
        let wanted: [(UInt32, UInt32)] = [
            (0, 0), (100_000, 100_000), (165_535, 100_000), (200_003, 1000), (300_000, 100_000), (300_009, 100_000),
            (300_010, 300_010),
        ]
        for (uid, account) in wanted { #expect(found.account(of: uid) == account, "\(uid)") }
    }

    @Test("the last uid of all can be one")
    func last() {
        let found = accounts("alice:4294967295:1\n")
        #expect(found.problem == nil)
        #expect(found.account(of: .max) == 1000)
    }

    @Test(
        "a line that makes no sense is left out and told, and the others hold",
        arguments: [
            "carol:200000:10", "bob:200000", "bob:0:10", "bob:200000:0", "bob:4294967295:2", "bob:99999999999:1",
            "bob:-1:5", "bob:200000:1e3", "bob:1000:10", "bob:1001:10", "bob:165535:10", "bob:90000:100000", "\u{0}",
            "::",
        ])
    func damaged(_ line: String) {
        let found = accounts("alice:100000:65536\n\(line)\nbob:400000:5\n")
        #expect(found.problem?.contains("line 2") == true, "\(line)")
        #expect(found.account(of: 100_000) == 1000)
        #expect(found.account(of: 400_004) == 1001)
        #expect(found.account(of: 200_000) == 200_000)
    }

    @Test("a file of any length is read to a bound, and that is told")
    func bounded() {
        let text = (0..<6000).map { "alice:\(100_000 + $0 * 10):10\n" }.joined()
        let found = accounts(text)
        #expect(found.ranges.count == Accounts.mostLines)
        #expect(found.problem?.contains("longer than 4096 lines") == true)
        #expect(found.account(of: 100_000 + 4095 * 10) == 1000)
        #expect(found.account(of: 100_000 + 4096 * 10) == 100_000 + 4096 * 10)
    }

    @Test("devices and starts of subordinate uids count for their account")
    func usage() throws {
        let accounts = Accounts(parsing: Array("1000:100000:65536\n".utf8)) { _ in nil }
        let host = try Host(policy: "allow uid=* target=* max-devices=2 max-starts=3\n", accounts: accounts)
        let subordinate = PeerCredentials(pid: 200, uid: 100_005, gid: 100_005, groups: [])
        _ = try host.add(as: Host.alice).get()
        _ = try host.add(as: subordinate).get()
        guard case .failure(.quotaReached(_, _, "max-devices", 2, _)) = try host.add(as: subordinate) else {
            Issue.record("a third device of one account")
            return
        }
        #expect(try host.delete(0) == nil)
        _ = try host.add(as: Host.alice).get()
        #expect(try host.delete(0) == nil)
        guard case .failure(.quotaReached(_, _, "max-starts", 3, .some)) = try host.add(as: subordinate) else {
            Issue.record("a fourth start of one account")
            return
        }
        #expect(try host.delete(1, as: subordinate) == nil)
    }
}

@Suite("Fair turns")
struct TurnsTests {
    @Test("each user has one call done before anybody has a second one; strangers together count as one")
    func fair() {
        var turns = Turns()
        var done: [String] = []
        func add(_ party: Turns.Party, _ account: UInt32, _ name: String) {
            turns.add(party, account) { done.append(name) }
        }
        for index in 0..<3 {
            add(.strangers, 2000, "m\(index)")
            add(.strangers, 2001, "n\(index)")
        }
        for index in 0..<3 { add(.account(1000), 1000, "a\(index)") }
        add(.account(1001), 1001, "b0")
        add(.root, 0, "r0")
        var rounds: [[String]] = []
        while !turns.isEmpty {
            for work in turns.takeRound() { work() }
            rounds.append(done)
            done = []
        }
        #expect(
            rounds == [["r0", "m0", "a0", "b0"], ["n0", "a1"], ["m1", "a2"], ["n1"], ["m2"], ["n2"]])
    }

    @Test("the loop goes on with other events between two rounds, and ends the work")
    func loop() throws {
        let loop = try EventLoop()
        var order: [String] = []
        for index in 0..<3 { loop.inTurn(of: .account(1), 1) { order.append("call \(index)") } }
        loop.after(milliseconds: 0) {
            order.append("alarm")
            loop.inTurn(of: .account(2), 2) { order.append("other") }
        }
        loop.inTurn(of: .account(3), 3) { loop.after(milliseconds: 50) { loop.stop() } }
        try loop.run()
        #expect(order.filter { $0.hasPrefix("call") } == ["call 0", "call 1", "call 2"])
        #expect(try #require(order.firstIndex(of: "other")) < #require(order.firstIndex(of: "call 2")))
    }
}
