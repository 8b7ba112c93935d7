import Glibc
import Testing

@testable import ubd_broker

/// Two looks per second at a worker whose numbers a test defines; the limit is 10 s.
@Suite("A worker that spends time")
struct BusyWatchTests {
    /// The values of the kernel and the worker at one moment, in nanoseconds.
    struct Host {
        var inFlight: (UInt64) -> Int = { _ in 0 }
        var turns: (UInt64) -> [UInt64] = { _ in [7, 7] }
        /// Of its own threads: main, queue 0, queue 1.
        var user: (UInt64) -> [UInt64] = { _ in [0, 0, 0] }
        var system: (UInt64) -> [UInt64] = { _ in [0, 0, 0] }
        var activity: (UInt64) -> [UInt8]? = { _ in [1] }
        /// Of the kernel's helper threads, which are part of the process.
        var helpers: (UInt64) -> UInt64 = { _ in 0 }
        var asked = 0
    }

    private static let limit: UInt64 = 10_000_000_000

    /// The second of the first verdict; nil when there is none within a minute.
    private func killed(_ host: Host) -> Double? {
        var watch = BusyWatch()
        for look in 0..<120 {
            let now = UInt64(look) * 500_000_000 + 1
            let (user, system) = (host.user(now), host.system(now))
            let found = watch.look(
                now: now, limit: BusyWatchTests.limit, inFlight: host.inFlight(now), turns: host.turns(now),
                spent: { (user + system).reduce(0, +) + host.helpers(now) },
                detail: {
                    var threads: [Int32: BusyWatch.Thread] = [:]
                    for (number, queue) in [nil, 0, 1].enumerated() {
                        threads[Int32(100 + number)] = BusyWatch.Thread(
                            queue: queue, user: user[number], total: user[number] + system[number])
                    }
                    return BusyWatch.Detail(threads: threads, activity: host.activity(now))
                })
            if found { return Double(look) / 2 }
        }
        return nil
    }

    @Test("with nothing in flight is seen, whichever thread it is, by the limit and a half")
    func nothingInFlight() throws {
        for thread in 0..<3 {
            for isSystem in [false, true] {
                var host = Host()
                let spend: (UInt64) -> [UInt64] = { now in (0..<3).map { $0 == thread ? now : 0 } }
                if isSystem { host.system = spend } else { host.user = spend }
                let second = try #require(killed(host))
                #expect((10...15).contains(second))
            }
        }
    }

    @Test("with nothing in flight is seen although it claims to wake up, and with a small share of a processor")
    func liar() {
        var host = Host()
        host.turns = { now in [now, now] }
        host.user = { now in [0, now / 8, 0] }
        #expect(killed(host) != nil)
        host.user = { now in [0, now / 20, 0] }
        #expect(killed(host) == nil)
    }

    @Test("on requests is left alone, were it all of a processor, also when each look falls between two of them")
    func works() {
        var host = Host()
        host.user = { now in [0, now, now] }
        host.turns = { now in [now, now] }
        host.inFlight = { _ in 3 }
        #expect(killed(host) == nil)
        host.inFlight = { _ in 0 }
        host.activity = { now in Array("\(now)".utf8) }
        #expect(killed(host) == nil)
        // Unknown values do not count against the worker.
        host.activity = { _ in nil }
        #expect(killed(host) == nil)
    }

    @Test("in one queue and finishes nothing there is seen while the other one serves; one in the kernel is not")
    func circles() {
        var host = Host()
        host.inFlight = { now in Int(now / 500_000_000 % 2) }
        host.activity = { now in Array("\(now)".utf8) }
        host.turns = { now in [now, 7] }
        host.user = { now in [0, now / 2, now] }
        #expect(killed(host) != nil)
        host.user = { now in [0, now / 2, 0] }
        host.system = { now in [0, 0, now] }
        #expect(killed(host) == nil)
    }

    @Test("is not one whose helper threads in the kernel do what they were asked for before")
    func helpers() {
        var host = Host()
        host.helpers = { $0 }
        #expect(killed(host) == nil)
    }

    @Test("for less than the limit is left alone")
    func burst() {
        var host = Host()
        host.user = { now in [0, min(now, 9_000_000_000), 0] }
        #expect(killed(host) == nil)
    }

    @Test("is told from the kernel's text, whatever the thread is called")
    func text() throws {
        let tail = " S 1 7 7 0 -1 FLAGS 1 2 3 4 250 50 0 0 20 0 3 0 900 1 2"
        func stat(_ name: String, _ flags: String) -> ThreadTimes.Stat? {
            ThreadTimes.Stat(Array("7 (\(name))\(tail.replacing("FLAGS", with: flags))\n".utf8))
        }
        let queue = try #require(stat("ubd-q12", "4194304"))
        #expect(queue.queue == 12 && !queue.isKernelHelper)
        let second: UInt64 = 1_000_000_000
        #expect(queue.user == second / 100 * 250 && queue.system == second / 100 * 50)
        #expect(try #require(stat("a) R (b", "64")).queue == nil)
        #expect(try #require(stat("iou-wrk-7", "80")).isKernelHelper)
        // A name is no proof.
        #expect(try #require(stat("iou-wrk-7", "64")).isKernelHelper == false)
        #expect(ThreadTimes.Stat([]) == nil)
        #expect(ThreadTimes.Stat(Array("7 (x) S".utf8)) == nil)
        #expect(ThreadTimes.ofProcess(getpid()) != nil)
        #expect(!ThreadTimes.ofThreads(getpid()).isEmpty)
    }
}
