import BrokerInterface
import Glibc
import SystemCalls
import WorkerProtocol

/// Looks after every live device twice a second: the kernel's own timeout does nothing for devices that root made
/// (docs/kernel-facts.md#no-timeout), so without this a worker that hangs would hang its users for ever.
final class Watchdog {
    /// Milliseconds: a worker that hangs is found at most so much later than its device's timeout says.
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
        guard let worker = device.worker, worker.end == nil, let statistics = device.statistics,
            statistics.isReadable
        else { return }
        let inFlight = Watchdog.inFlight(device.id)
        let isStopped = inFlight > 0 && Watchdog.isStopped(worker.pid)
        let sample = ProgressWatch.Sample(
            inFlight: inFlight, claims: statistics.claims, isStopped: isStopped,
            hasFile: device.launch?.target.needsFiles ?? true)
        let seconds = device.info.ioTimeout ?? Int64(broker.configuration.ioTimeout)
        let limit = UInt64(clamping: seconds) * 1_000_000_000
        let verdict = device.watch.look(sample, now: monotonicNanoseconds(), limit: limit) {
            Watchdog.timeSpent(worker.pid)
        }
        switch verdict {
        case .fine: endReport(device)
        case .waitsForFile: report(device)
        case .hung:
            device.watch = ProgressWatch()
            Log.error("watchdog", ("device", "\(device.id)"), ("worker", "\(worker.pid)"))
            broker.kill(
                device,
                because: "was killed by the watchdog: it had work and did nothing for \(seconds) s")
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
        return sumOfNumbers(bytes)
    }

    /// By bytes, as in all that is done twice a second for each device: to split text into words costs a million instructions
    /// for what /proc has of a process.
    static func sumOfNumbers(_ bytes: [UInt8]) -> Int {
        var (sum, number) = (0, 0)
        for byte in bytes {
            let digit = Int(byte) - 0x30
            if (0...9).contains(digit) {
                number = min(number, 1 << 40) * 10 + digit
            } else {
                sum += number
                number = 0
            }
        }
        return sum + number
    }

    private static func isStopped(_ pid: Int32) -> Bool {
        guard let bytes = try? readFile("/proc/\(pid)/stat") else { return false }
        return isStopped(stat: bytes)
    }

    /// The third field of /proc/PID/stat, behind the name in brackets, which may have brackets in it.
    static func isStopped(stat bytes: [UInt8]) -> Bool {
        guard let close = bytes.lastIndex(of: UInt8(ascii: ")")), close + 2 < bytes.count else { return false }
        return [UInt8(ascii: "T"), UInt8(ascii: "t")].contains(bytes[close + 2])
    }

    /// Field 14 of /proc/PID/task/TID/stat, in clock ticks: time in user mode. The thread of queue 0 is called "ubd-q0".
    private static func timeSpent(_ pid: Int32) -> ProgressWatch.TimeSpent {
        var result: ProgressWatch.TimeSpent = [:]
        let nanosecondsPerTick = 1_000_000_000 / UInt64(max(sysconf(Int32(_SC_CLK_TCK)), 1))
        for thread in listFolder("/proc/\(pid)/task") {
            guard let bytes = try? readFile("/proc/\(pid)/task/\(thread)/stat"),
                let open = bytes.firstIndex(of: UInt8(ascii: "(")), let close = bytes.lastIndex(of: UInt8(ascii: ")"))
            else { continue }
            let name = String(decoding: bytes[(open + 1)..<close], as: UTF8.self)
            let fields = bytes[(close + 1)...].split(separator: UInt8(ascii: " "))
            guard name.hasPrefix("ubd-q"), let queue = Int(name.dropFirst(5)), fields.count > 11,
                let ticks = UInt64(String(decoding: fields[11], as: UTF8.self))
            else { continue }
            result[queue] = ticks * nanosecondsPerTick
        }
        return result
    }
}
