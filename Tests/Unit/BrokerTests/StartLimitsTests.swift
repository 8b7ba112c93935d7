import BrokerInterface
import Glibc
import Policy
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("How many workers a user's requests may start")
struct StartLimitsTests {
    private static let second: UInt64 = 1_000_000_000

    private func limits(starts: UInt64? = nil, penalty: UInt64? = nil) -> AccessLimits {
        var limits = AccessLimits()
        limits.maxStarts = starts
        limits.penalty = penalty
        return limits
    }

    @Test("is as many as max-starts says, at once or one by one, and no more within a minute")
    func rate() {
        for pace in [0, 5 * Self.second, 20 * Self.second] {
            var start = StartLimits()
            var now = 1000 * Self.second
            var taken: [UInt64] = []
            for _ in 0..<100 {
                if start.take(uid: 1000, line: 1, limits(starts: 6), now: now) == nil { taken.append(now) }
                now += max(pace, 1)
            }
            // In no minute more than the bucket and its refill: twice the limit, once.
            for first in taken { #expect(taken.filter { first <= $0 && $0 < first + 60 * Self.second }.count <= 12) }
            #expect(taken.count == (pace == 0 ? 6 : pace == 5 * Self.second ? 55 : 100), "\(pace)")
        }
    }

    @Test("is told with the seconds until the next, which is then given")
    func again() {
        var start = StartLimits()
        let now = 7 * Self.second
        for _ in 0..<3 { #expect(start.take(uid: 1, line: 1, limits(starts: 3), now: now) == nil) }
        #expect(start.take(uid: 1, line: 1, limits(starts: 3), now: now) == .tooOften(limit: 3, again: 20))
        #expect(
            start.take(uid: 1, line: 1, limits(starts: 3), now: now + 19 * Self.second) == .tooOften(limit: 3, again: 1)
        )
        #expect(start.take(uid: 1, line: 1, limits(starts: 3), now: now + 20 * Self.second) == nil)
    }

    @Test("is each user's own, and without max-starts as many as asked for")
    func others() {
        var start = StartLimits()
        #expect(start.take(uid: 1, line: 1, limits(starts: 1), now: 5) == nil)
        #expect(start.take(uid: 1, line: 1, limits(starts: 1), now: 5) != nil)
        #expect(start.take(uid: 2, line: 1, limits(starts: 1), now: 5) == nil)
        // One line of the policy does not count against another's limit.
        #expect(start.take(uid: 1, line: 2, limits(starts: 1), now: 5) == nil)
        for _ in 0..<1000 { #expect(start.take(uid: 3, line: 1, limits(), now: 5) == nil) }
    }

    @Test("is none for a while after a violation, twice as long each time, and at most an hour")
    func penalties() {
        var start = StartLimits()
        var now = 100 * Self.second
        for (violations, seconds) in [(1, 60), (2, 120), (3, 240), (4, 480), (5, 960), (6, 1920), (7, 3600), (8, 3600)]
            as [(Int, UInt64)]
        {
            start.noteViolation(uid: 1000, now: now)
            let refusal = StartLimits.Refusal.penalty(violations: violations, again: seconds)
            #expect(start.take(uid: 1000, line: 1, limits(penalty: 60), now: now) == refusal)
            #expect(start.take(uid: 1001, line: 1, limits(penalty: 60), now: now) == nil)
            #expect(start.take(uid: 1000, line: 1, limits(), now: now) == nil)
            now += (seconds - 1) * Self.second
            #expect(
                start.take(uid: 1000, line: 1, limits(penalty: 60), now: now)
                    == .penalty(violations: violations, again: 1))
            now += Self.second
            #expect(start.take(uid: 1000, line: 1, limits(penalty: 60), now: now) == nil)
        }
        // Forgotten after a day.
        now += 86400 * Self.second
        start.noteViolation(uid: 1000, now: now)
        #expect(start.take(uid: 1000, line: 1, limits(penalty: 60), now: now) == .penalty(violations: 1, again: 60))
    }

    @Test("violations within a minute are one: what breaks one worker breaks its replacement, too")
    func burst() {
        var start = StartLimits()
        var now = 100 * Self.second
        for _ in 0..<9 {
            start.noteViolation(uid: 1000, now: now)
            now += 5 * Self.second
        }
        #expect(start.take(uid: 1000, line: 1, limits(penalty: 60), now: now) == .penalty(violations: 1, again: 55))
    }

    @Test("violations that go on and on are more and more, however they are spaced")
    func steady() {
        for pause: UInt64 in [1, 20, 50, 61] {
            var start = StartLimits()
            var now = 100 * Self.second
            for _ in 0..<(600 / pause) {
                start.noteViolation(uid: 1000, now: now)
                now += pause * Self.second
            }
            guard case .penalty(let count, _) = start.take(uid: 1000, line: 1, limits(penalty: 60), now: now) else {
                Issue.record("none, \(pause)")
                continue
            }
            #expect(count >= 6, "\(pause)")
        }
    }

    @Test("survives absurd numbers")
    func absurd() {
        var start = StartLimits()
        for uid in 0..<2000 as Range<UInt32> {
            #expect(start.take(uid: uid, line: 1, limits(starts: 1_000_000, penalty: 3600), now: UInt64(uid)) == nil)
            for _ in 0..<20 { start.noteViolation(uid: uid, now: UInt64(uid)) }
        }
        #expect(start.take(uid: 5, line: 1, limits(penalty: 3600), now: 6) == .penalty(violations: 1, again: 3600))
    }

    // MARK: In the broker

    private func host(_ more: String) throws -> Host {
        try Host(policy: "allow uid=0 target=*\nallow group=50 target=* \(more)\n")
    }

    private func refusal(_ result: Result<(Device, [Notice]), InterfaceError>, _ limit: String) throws -> InterfaceError
    {
        guard case .failure(let error) = result, case .quotaReached(_, _, limit, _, _) = error else {
            Issue.record("\(result)")
            throw InterfaceError.permissionDenied
        }
        return error
    }

    @Test("an add beyond max-starts is refused with the line and when to try again, and root's is not")
    func tooManyAdds() throws {
        let host = try host("max-starts=2")
        for _ in 0..<2 { _ = try host.add().get() }
        let error = try refusal(host.add(), "max-starts")
        #expect(error.message.contains("max-starts=2 of line 2 of /etc/ubd/access.policy"))
        #expect(error.remedy == "try again in 30 s")
        _ = try host.add(as: Host.bob).get()
        #expect(host.broker.devices.count == 3)
        // An upgrade starts a worker, too, if there is another program.
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { result in
            #expect((try? result.get())?.upgraded == false)
        }
        host.installed = try Host.program()
        var answer: Result<UpgradeReply, InterfaceError>?
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { answer = $0 }
        guard case .failure(.quotaReached(_, _, "max-starts", 2, .some)) = answer else {
            Issue.record("\(String(describing: answer))")
            return
        }
    }

    @Test("a worker that makes a forbidden system call, or says what it must not, costs its owner the next add")
    func violation() throws {
        for isLive in [true, false] {
            let host = try host("penalty=60")
            host.kernel.features = [.perIODaemon]
            if isLive {
                _ = try host.add().get()
                host.kernel.quiesce(0)
                host.workers[0].die(.killed(signal: SIGSYS))
                // The existing device still gets its next worker.
                try host.run { host.broker.devices[0]?.info.state == .live && host.workers.count == 2 }
            } else {
                host.fault = .violates
                guard case .failure = try host.add() else {
                    Issue.record("added")
                    return
                }
                host.fault = nil
            }
            let error = try refusal(host.add(), "penalty")
            #expect(error.message.contains("a worker of yours broke the sandbox"))
            #expect(error.message.contains("penalty=60 of line 2"))
            _ = try host.add(as: Host.bob).get()
        }
    }

    @Test("whom the policy gives nothing any more is bound all the same, and strictly")
    func withoutRule() throws {
        for more in ["deny uid=* target=*\n", ""] {
            let host = try Host(policy: "allow uid=0 target=*\n" + more)
            _ = try host.add(as: Host.root).get()
            let device = try #require(host.broker.devices[0])
            for _ in 0..<60 { #expect(host.broker.permitStart(for: device, "upgrade", Host.alice) == nil) }
            let often = try #require(host.broker.permitStart(for: device, "upgrade", Host.alice))
            #expect(
                often.message.contains("max-starts=60 of users without a rule in /etc/ubd/access.policy"))
            host.broker.startLimits.noteViolation(uid: Host.bob.uid, now: monotonicNanoseconds())
            guard
                case .quotaReached(_, _, "penalty", 3600, _) = host.broker.permitStart(for: device, "recover", Host.bob)
            else {
                Issue.record("bob may")
                continue
            }
        }
    }

    @Test("a worker that is tried out before an upgrade is judged like any other")
    func triedOut() throws {
        let host = try host("penalty=60")
        host.kernel.features = [.perIODaemon, .quiesce]
        _ = try host.add().get()
        // As after a restart of the broker: the device's worker is of an earlier program.
        host.installed = try Host.program()
        host.broker.program = host.installed
        host.fault = .violates
        var answer: Result<UpgradeReply, InterfaceError>?
        host.broker.upgrade(UpgradeRequest(id: 0), peer: Host.alice) { answer = $0 }
        try host.run { answer != nil }
        host.fault = nil
        #expect(host.workers.map(\.isRehearsal) == [false, true])
        _ = try refusal(host.add(), "penalty")
    }

    @Test("a device that is being deleted does not hide what its worker does")
    func whileDeleted() throws {
        let host = try host("penalty=60")
        _ = try host.add().get()
        host.kernel.beforeAnswer[.stopDevice] = { host.workers[0].die(.killed(signal: SIGSYS)) }
        #expect(try host.delete(0) == nil)
        _ = try refusal(host.add(), "penalty")
    }

    @Test("nor does a deletion that is refused: the worker that said what it must not is killed afterwards")
    func whileRefused() throws {
        let host = try host("penalty=60")
        host.kernel.features = [.safeStop, .perIODaemon]
        _ = try host.add().get()
        host.kernel.failures[.tryStopDevice] = EBUSY
        var isTold = false
        host.kernel.beforeAnswer[.tryStopDevice] = {
            if !isTold { host.workers[0].tell(.violation("files in a message")) }
            isTold = true
        }
        #expect(try host.delete(0)?.name == "io.ubd.Broker.Busy")
        try host.run { host.workers[0].hasEnded }
        #expect(host.workers[0].signals.contains("KILL"))
        host.kernel.quiesce(0)
        try host.run { host.broker.devices[0]?.info.state == .live && host.workers.count == 2 }
        _ = try refusal(host.add(), "penalty")
    }

    @Test("what a worker of another program than the broker's does is told, and costs its owner nothing")
    func otherProgram() throws {
        let host = try host("penalty=60")
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.broker.devices[0]?.workerProgram = try Host.program()
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGSYS))
        try host.run { host.broker.devices[0]?.info.state == .live && host.workers.count == 2 }
        _ = try host.add().get()
    }

    @Test("other deaths cost nothing")
    func otherDeaths() throws {
        let host = try host("penalty=60")
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        for signal in [SIGSEGV, SIGKILL, SIGABRT] {
            host.kernel.quiesce(0)
            host.workers.last?.die(.killed(signal: signal))
            let count = host.workers.count
            try host.run { host.broker.devices[0]?.info.state == .live && host.workers.count > count }
        }
        _ = try host.add().get()
    }
}
