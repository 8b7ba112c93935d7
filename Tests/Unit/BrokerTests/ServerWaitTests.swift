import BrokerInterface
import Glibc
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("A device of a server that accepts connections and answers nothing")
struct ServerWaitTests {
    /// Without a limit: closes of sockets count for a moment.
    private static let policy = "allow group=50 target=*\n"

    @Test("fails when --reconnect is over though it had connections, over which no request was completed")
    func answersNothing() throws {
        let host = try NBDHost(policy: Self.policy, NBDHost.request([OptionValue("reconnect", "2000")]))
        host.end()
        let began = try #require(host.device?.serverWait.began)
        for round in 1...3 as ClosedRange<Int64> {
            #expect(try host.recover().get().state == .live)
            host.end()
            #expect(host.device?.serverWait.began == began && host.device?.serverWait.unanswered == round)
        }
        try host.host.run { host.info?.state == .failed }
        let reason = host.info?.reason ?? ""
        #expect(reason.contains("its server answered no request within 2 s (--reconnect)"), "\(reason)")
    }

    @Test("fails at once when it loses connections after --reconnect that brought no answer, and not while it has them")
    func slowServer() throws {
        let host = try NBDHost(policy: Self.policy, NBDHost.request([OptionValue("reconnect", "1000")]))
        host.end()
        #expect(try host.recover().get().state == .live)
        var isLater = false
        host.host.loop.after(milliseconds: 1200) { isLater = true }
        try host.host.run { isLater }
        #expect(host.info?.state == .live)
        let lost = monotonicNanoseconds()
        host.end()
        try host.host.run { host.info?.state == .failed }
        #expect(monotonicNanoseconds() - lost < 800_000_000)
    }

    @Test("waits on with on-lost=wait however often that happens")
    func answersNothingButWaits() throws {
        let host = try NBDHost(
            policy: Self.policy, NBDHost.request([OptionValue("reconnect", "0"), OptionValue("on-lost", "wait")]))
        for round in 0...3 as ClosedRange<Int64> {
            host.end()
            #expect(host.info?.state == .recovering && host.device?.serverWait.unanswered == round)
            #expect(try host.recover().get().state == .live)
        }
    }

    @Test("has the whole time again once a request was completed over new connections, also in its record")
    func answersAgain() throws {
        let host = try NBDHost(policy: Self.policy)
        host.host.requestsInFlight = 1
        host.end()
        let first = try #require(host.device?.serverWait.began)
        #expect(try host.recover().get().state == .live)
        let recorded = { try host.host.broker.store.load().records.first?.inputsLost }
        #expect(try recorded() == first)
        host.end()
        #expect(try host.recover().get().state == .live)
        try host.answer()
        host.end()
        #expect(host.device.flatMap(\.serverWait.began).map { $0 > first } == true)
        #expect(host.device?.serverWait.unanswered == 0)
        #expect(try host.recover().get().state == .live)
        try host.answer()
        Watchdog(host.host.broker).begin()
        try host.host.run { host.device?.serverWait.began == nil }
        #expect(try recorded() == .some(nil))
    }

    @Test("does not wait when it serves and nobody has a request; one under way at the server says nothing")
    func idle() {
        let second: UInt64 = 1_000_000_000
        var wait = ServerWait()
        wait.lost(now: 5, committed: 7)
        wait.served(now: second, committed: 7)
        var ended = wait.look(now: 2 * second - 1, committed: 7, inFlight: 0)
        #expect(!ended)
        ended = wait.look(now: 99 * second, committed: 7, inFlight: 1)
        #expect(!ended && wait.began == 5)
        ended = wait.look(now: 99 * second, committed: 7, inFlight: 0)
        #expect(ended && wait.began == nil)
        ended = wait.look(now: 99 * second, committed: 7, inFlight: 0)
        #expect(!ended)
        // What can not be read ends a wait as before.
        wait.lost(now: 6, committed: nil)
        wait.served(now: second, committed: nil)
        #expect(wait.began == nil)
        // New connections that no worker served over are none.
        wait.lost(now: 7, committed: 7)
        wait.lost(now: 8, committed: 7)
        #expect(wait.began == 7 && wait.unanswered == 0)
    }
}
