import Glibc
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("The watchdog")
struct WatchdogTests {
    @Test("concludes nothing from requests that are not known")
    func unknownRequests() throws {
        let host = try Host()
        _ = try host.add().get()
        let device = try #require(host.broker.devices[0])
        device.watch.isReported = true
        var looks = 0
        host.whileCounted = { looks += 1 }
        host.requestsInFlight = nil
        Watchdog(host.broker).begin()
        try host.run { looks == 2 }
        #expect(device.watch.isReported)
        host.requestsInFlight = 0
        try host.run { !device.watch.isReported }
        #expect(looks > 2)
    }

    private func sample(
        inFlight: Int = 4, taken: UInt64 = 10, committed: UInt64 = 6, stopped: Bool = false,
        hasFile: Bool = true
    ) -> ProgressWatch.Sample {
        var claims = QueueStatistics()
        claims.taken = taken
        claims.committed = committed
        return ProgressWatch.Sample(inFlight: inFlight, claims: [claims], isStopped: stopped, hasFile: hasFile)
    }

    /// The last verdict for the same sample every second for that long; the limit is 10 s.
    private func verdict(after seconds: Int, of sample: ProgressWatch.Sample) -> ProgressWatch.Verdict {
        var watch = ProgressWatch()
        var verdict = ProgressWatch.Verdict.fine
        for second in 0...seconds {
            verdict = watch.look(sample, now: UInt64(second) * 1_000_000_000 + 1, limit: 10_000_000_000)
        }
        return verdict
    }

    @Test("leaves a worker without work alone, however long it does nothing")
    func idle() {
        #expect(verdict(after: 1000, of: sample(inFlight: 0)) == .fine)
        #expect(verdict(after: 1000, of: sample(inFlight: 0, stopped: true)) == .fine)
    }

    @Test("gives a worker with work the whole time that is set")
    func patient() {
        #expect(verdict(after: 9, of: sample(taken: 6)) == .fine)
        #expect(verdict(after: 10, of: sample(taken: 6)) == .hung)
    }

    @Test("does not take a slow file for a dead worker")
    func slowFile() {
        #expect(verdict(after: 11, of: sample()) == .waitsForFile)
        #expect(verdict(after: 5000, of: sample()) == .waitsForFile)
    }

    @Test("takes a stopped worker for hung, whatever it holds")
    func stopped() {
        #expect(verdict(after: 11, of: sample(stopped: true)) == .hung)
    }

    @Test("takes a worker that holds requests for hung when there is no file to wait for")
    func noFile() {
        #expect(verdict(after: 9, of: sample(hasFile: false)) == .fine)
        #expect(verdict(after: 11, of: sample(hasFile: false)) == .hung)
    }

    /// A device of two queues; the first makes progress with every look.
    private func busySample(_ second: Int, holding taken: UInt64) -> ProgressWatch.Sample {
        var busy = QueueStatistics()
        busy.committed = UInt64(second)
        busy.taken = UInt64(second) + 1
        var other = QueueStatistics()
        other.committed = 5
        other.taken = taken
        return ProgressWatch.Sample(inFlight: 2, claims: [busy, other], isStopped: false)
    }

    @Test("a queue that serves is no excuse for one that holds requests and gives none back")
    func queues() {
        var (stuck, idle) = (ProgressWatch(), ProgressWatch())
        var verdicts: [ProgressWatch.Verdict] = []
        for second in 0...12 {
            let now = UInt64(second) * 1_000_000_000 + 1
            verdicts.append(stuck.look(busySample(second, holding: 6), now: now, limit: 10_000_000_000))
            #expect(idle.look(busySample(second, holding: 5), now: now, limit: 10_000_000_000) == .fine)
        }
        #expect(verdicts.prefix(10).allSatisfy { $0 == .fine })
        #expect(verdicts.last == .waitsForFile)
    }

    @Test("a thread that runs in circles does not wait for a file", arguments: [(95, true), (40, false)])
    func circles(percent: UInt64, isHung: Bool) {
        var watch = ProgressWatch()
        var verdict = ProgressWatch.Verdict.fine
        for second in 0...11 {
            let now = UInt64(second) * 1_000_000_000 + 1
            verdict = watch.look(sample(), now: now, limit: 10_000_000_000) { [0: now / 100 * percent] }
        }
        #expect(verdict == (isHung ? .hung : .waitsForFile))
    }

    @Test("a queue whose thread runs in circles is seen while another one serves", arguments: [(95, true), (0, false)])
    func circlesBesideOthers(percent: UInt64, isHung: Bool) {
        var watch = ProgressWatch()
        var verdict = ProgressWatch.Verdict.fine
        for second in 0...11 {
            let now = UInt64(second) * 1_000_000_000 + 1
            var sample = busySample(second, holding: 5)
            sample.claims[0].turns = UInt64(second)
            verdict = watch.look(sample, now: now, limit: 10_000_000_000) { [0: now, 1: now / 100 * percent] }
        }
        #expect(verdict == (isHung ? .hung : .fine))
    }

    @Test("counts from the last request that went back")
    func progress() {
        var watch = ProgressWatch()
        var verdicts: Set<String> = []
        for second in 0..<100 {
            let verdict = watch.look(
                sample(taken: UInt64(second / 5) + 4, committed: UInt64(second / 5)),
                now: UInt64(second) * 1_000_000_000, limit: 10_000_000_000)
            verdicts.insert("\(verdict)")
        }
        #expect(verdicts == ["fine"])
    }

    @Test("is not confused by claims that make no sense")
    func nonsense() {
        #expect(verdict(after: 11, of: sample(taken: 0, committed: .max)) == .hung)
        #expect(verdict(after: 11, of: sample(taken: .max, committed: 0)) == .waitsForFile)
    }
}

@Suite("A device's statistics page")
struct DeviceStatisticsTests {
    @Test("adds up the queues and never traps, whatever a worker wrote")
    func sums() throws {
        let statistics = try DeviceStatistics(queues: 2)
        #expect(statistics.total == QueueStatistics())
        let memory = try Mapping.shared(statistics.file.raw, offset: 0, bytes: 4096, writable: true)
        memory.base.storeBytes(of: UInt64.max, toByteOffset: 0, as: UInt64.self)
        memory.base.storeBytes(of: UInt64(3), toByteOffset: StatisticsPage.stride, as: UInt64.self)
        #expect(statistics.total.taken == 2)
    }

    @Test("knows a stopped worker, whatever it is called, and how many requests wait for it")
    func kernelFiles() {
        for (stat, isStopped) in [
            ("7 (ubd-worker) T 1 7", true), ("7 (ubd-worker) t 1", true), ("7 (ubd-worker) S 1", false),
            ("7 (a) T (b)) R 1", false), ("7 (x", nil), ("7 (x)", nil), ("", nil),
        ] as [(String, Bool?)] {
            #expect(ProcessStat(Array(stat.utf8))?.isStopped == isStopped, "\(stat)")
        }
        #expect(Watchdog.isStopped("/proc/self/stat") == false)
        #expect(Watchdog.isStopped("/proc/0/stat") == false)
        // A folder cannot be read: that says nothing.
        #expect(Watchdog.isStopped("/proc/self") == nil)
        for (text, sum) in [("       3       12\n", 15), ("0 0\n", 0), ("", 0), ("7", 7), ("x\n", 0)] {
            #expect(BlockLayer.sumOfNumbers(Array(text.utf8)) == sum, "\(text)")
        }
        #expect(BlockLayer.sumOfNumbers([UInt8](repeating: 0x39, count: 100)) > 0)
    }

    @Test("is not read while a worker of another layout counts in it")
    func layout() throws {
        let statistics = try DeviceStatistics(queues: 2)
        #expect(statistics.isReadable)
        let memory = try Mapping.shared(statistics.file.raw, offset: 0, bytes: 4096, writable: true)
        let place = StatisticsPage.stride + StatisticsPage.Word.layout * 8
        memory.base.storeBytes(of: StatisticsPage.layout, toByteOffset: place, as: UInt64.self)
        statistics.readLayout()
        #expect(statistics.isReadable)
        for other in [StatisticsPage.layout + 1, .max] {
            memory.base.storeBytes(of: other, toByteOffset: place, as: UInt64.self)
            // Not because the worker says so.
            #expect(statistics.isReadable)
            statistics.readLayout()
            #expect(!statistics.isReadable)
            memory.base.storeBytes(of: StatisticsPage.layout, toByteOffset: place, as: UInt64.self)
            statistics.readLayout()
        }
    }

    @Test("can't be shrunk under the broker's eyes")
    func sealed() throws {
        let statistics = try DeviceStatistics(queues: 1)
        #expect(ftruncate(statistics.file.raw, 0) == -1)
        #expect(errno == EPERM)
    }
}
