import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// Examines every live device twice a second. The kernel's request timeout does nothing for devices that root made
/// (docs/kernel-facts.md#no-timeout), so without this a hung worker would hang its users forever.
final class Watchdog {
    /// Milliseconds: a hung worker is found at most this much later than the device's timeout.
    private static let period = 500

    private let broker: Broker

    init(_ broker: Broker) { self.broker = broker }

    func begin() {
        broker.loop.after(milliseconds: Watchdog.period) { [self] in
            for device in broker.devices.values where device.info.state == .live { examine(device) }
            begin()
        }
    }

    private func examine(_ device: ManagedDevice) {
        // If the number is unknown, nothing follows from it.
        guard let worker = device.worker, worker.end == nil, let counted = broker.requestsInFlight(device.id)
        else {
            return
        }
        // The block layer does not count flushes. Whether a worker may use a processor is not decided by what it says.
        let inFlight = counted == 0 && device.holdsRequests == true ? 1 : counted
        broker.lookAtWait(of: device, inFlight: inFlight)
        let seconds = device.info.ioTimeout ?? Int64(broker.configuration.ioTimeout)
        let limit = UInt64(clamping: seconds) * 1_000_000_000
        let claims = device.statistics.map { $0.isReadable ? $0.claims : [] } ?? []
        if lookAtProgress(device, worker, inFlight, claims, limit) {
            return end(device, worker, "it had work and did nothing for \(seconds) s")
        }
        let doesNothing = device.busyWatch.look(
            now: monotonicNanoseconds(), limit: limit, inFlight: counted, turns: claims.map(\.turns),
            spent: { ThreadTimes.ofProcess(worker.pid) },
            detail: {
                BusyWatch.Detail(
                    threads: ThreadTimes.ofThreads(worker.pid),
                    activity: try? readFile("/sys/block/ublkb\(device.id)/stat"))
            })
        if doesNothing { end(device, worker, "it kept a processor busy for \(seconds) s and did nothing") }
    }

    /// Returns true when a worker with requests makes no progress.
    private func lookAtProgress(
        _ device: ManagedDevice, _ worker: any Worker, _ inFlight: Int, _ claims: [QueueStatistics], _ limit: UInt64
    ) -> Bool {
        if claims.isEmpty { return false }
        // Nothing follows from what cannot be told, for want of descriptors for example.
        guard let isStopped = inFlight == 0 ? false : Watchdog.isStopped("/proc/\(worker.pid)/stat") else {
            return false
        }
        let sample = ProgressWatch.Sample(
            inFlight: inFlight, claims: claims, isStopped: isStopped,
            hasFile: device.launch.map { !$0.target.inputs.isEmpty } ?? true)
        let verdict = device.watch.look(sample, now: monotonicNanoseconds(), limit: limit) {
            ThreadTimes.ofQueues(worker.pid)
        }
        switch verdict {
        case .fine: endReport(device)
        case .waitsForFile: report(device, since: Int64(time(nil)) - Int64(clamping: limit / 1_000_000_000))
        case .hung: return true
        }
        return false
    }

    private func end(_ device: ManagedDevice, _ worker: any Worker, _ why: String) {
        device.watch = ProgressWatch()
        device.busyWatch = BusyWatch()
        Log.error("watchdog", ("device", "\(device.id)"), ("worker", "\(worker.pid)"), ("why", why))
        broker.kill(device, because: "was killed by the watchdog: \(why)")
    }

    /// `since`: seconds since 1970.
    private func report(_ device: ManagedDevice, since: Int64) {
        guard !device.watch.isReported else { return }
        device.watch.isReported = true
        device.setState(.live, reason: "it waits for \(device.source), which does not answer")
        device.info.waitsSince = since
        Log.warning("waits-for-file", ("device", "\(device.id)"), ("owner", "\(device.owner)"))
    }

    private func endReport(_ device: ManagedDevice) {
        guard device.watch.isReported else { return }
        device.watch.isReported = false
        device.setState(.live)
        Log.info("file-answers", ("device", "\(device.id)"))
    }

    /// Whether a signal has stopped a process, from its file in /proc; nil when that cannot be told. One that is gone is
    /// not stopped.
    static func isStopped(_ path: String) -> Bool? {
        do throws(SystemError) { return ProcessStat(try readFile(path))?.isStopped } catch {
            return error.saysProcessIsGone ? false : nil
        }
    }
}
