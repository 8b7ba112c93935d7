import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// Whether a worker that has work gets on with it.
struct ProgressWatch: Equatable {
    /// What was seen in one look.
    struct Sample: Equatable {
        /// Requests that the kernel waits for.
        var inFlight: Int
        /// What the worker claims.
        var claims: QueueStatistics
        /// A thread of it is stopped (SIGSTOP, a debugger).
        var isStopped: Bool
    }

    enum Verdict: Equatable {
        case fine
        /// It holds requests and waits for its file: a new worker would wait too.
        case waitsForFile
        /// It has requests and does not take them, or can't run: a new worker helps.
        case hung
    }

    private var last: QueueStatistics?
    /// Nanoseconds of CLOCK_MONOTONIC since when nothing went on; nil while it does.
    private(set) var stalledSince: UInt64?
    /// A wait for the file has been reported.
    var isReported = false

    /// Looks at a sample taken at `now`; `limit` in nanoseconds.
    mutating func look(_ sample: Sample, now: UInt64, limit: UInt64) -> Verdict {
        let moved = sample.claims.committed != last?.committed
        last = sample.claims
        guard sample.inFlight > 0, !moved else {
            stalledSince = nil
            return .fine
        }
        guard let since = stalledSince else {
            stalledSince = now
            return .fine
        }
        guard now - since >= limit else { return .fine }
        // Only a worker that runs and holds a request waits for its file. Its claims are not trusted further than that:
        // one that lies keeps its own device waiting, and nobody else.
        let holdsRequests = sample.claims.taken > sample.claims.committed
        return holdsRequests && !sample.isStopped ? .waitsForFile : .hung
    }
}

/// Looks after every live device once a second: the kernel's own timeout does nothing for devices that root made
/// (kernel-facts, G), so without this a worker that hangs would hang its users for ever.
final class Watchdog {
    private static let period = 1_000

    private let broker: Broker
    private let limit: UInt64

    init(_ broker: Broker) {
        self.broker = broker
        limit = UInt64(broker.configuration.ioTimeout) * 1_000_000_000
    }

    func begin() {
        broker.loop.after(milliseconds: Watchdog.period) { [self] in
            for device in broker.devices.values where device.info.state == .live { examine(device) }
            begin()
        }
    }

    private func examine(_ device: ManagedDevice) {
        guard let worker = device.worker, worker.end == nil, let statistics = device.statistics else { return }
        let inFlight = Watchdog.inFlight(device.id)
        let isStopped = inFlight > 0 && Watchdog.isStopped(worker.pid)
        let sample = ProgressWatch.Sample(inFlight: inFlight, claims: statistics.total, isStopped: isStopped)
        switch device.watch.look(sample, now: monotonicNanoseconds(), limit: limit) {
        case .fine: endReport(device)
        case .waitsForFile: report(device)
        case .hung:
            device.watch = ProgressWatch()
            Log.error("watchdog", ("device", "\(device.id)"), ("worker", "\(worker.pid)"))
            device.killedBecause =
                "was killed by the watchdog: it had work and did nothing for "
                + "\(broker.configuration.ioTimeout) s"
            worker.kill()
        }
    }

    private func report(_ device: ManagedDevice) {
        guard !device.watch.isReported else { return }
        device.watch.isReported = true
        device.setState(.live, reason: "it waits for its file, which does not answer")
        Log.warning("waits-for-file", ("device", "\(device.id)"), ("owner", "\(device.owner)"))
    }

    private func endReport(_ device: ManagedDevice) {
        guard device.watch.isReported else { return }
        device.watch.isReported = false
        device.setState(.live)
        Log.info("file-answers", ("device", "\(device.id)"))
    }

    /// Reads and writes that the block layer waits for: /sys/block/DISK/inflight, two numbers.
    static func inFlight(_ id: UInt32) -> Int {
        guard let bytes = try? readFile("/sys/block/ublkb\(id)/inflight") else { return 0 }
        return String(decoding: bytes, as: UTF8.self).split { $0 == " " || $0 == "\n" }.compactMap { Int($0) }
            .reduce(0, +)
    }

    private static func isStopped(_ pid: Int32) -> Bool {
        guard let status = try? ProcessStatus(of: "\(pid)") else { return false }
        return status.state == "T" || status.state == "t"
    }
}
