import Glibc
import SystemCalls

/// What a worker's threads have spent of the processors, from /proc/PID/stat and /proc/PID/task/TID/stat
/// (proc_pid_stat(5)), in nanoseconds. The kernel counts in ticks of 10 ms.
enum ThreadTimes {
    /// Of all threads together, those that have ended and the kernel's helpers included; nil when the process is gone.
    static func ofProcess(_ pid: Int32) -> UInt64? {
        guard let bytes = try? readFile("/proc/\(pid)/stat"), let stat = Stat(bytes) else { return nil }
        return stat.user &+ stat.system
    }

    /// Of the worker's own threads. The kernel's helper threads of its rings work for requests: they are left out, by the
    /// kernel's mark and not by their name, which a worker could give to a thread of its own.
    static func ofThreads(_ pid: Int32) -> [Int32: BusyWatch.Thread] {
        var result: [Int32: BusyWatch.Thread] = [:]
        for name in listFolder("/proc/\(pid)/task") {
            guard let thread = Int32(name), let bytes = try? readFile("/proc/\(pid)/task/\(name)/stat"),
                let stat = Stat(bytes), !stat.isKernelHelper
            else { continue }
            result[thread] = BusyWatch.Thread(queue: stat.queue, user: stat.user, total: stat.user &+ stat.system)
        }
        return result
    }

    /// Time in its own code of the thread of each queue.
    static func ofQueues(_ pid: Int32) -> ProgressWatch.TimeSpent {
        var result: ProgressWatch.TimeSpent = [:]
        for thread in ofThreads(pid).values {
            if let queue = thread.queue { result[queue] = thread.user }
        }
        return result
    }

    /// One such file.
    struct Stat: Equatable {
        /// The queue whose thread it is, by its name: "ubd-q0" is that of queue 0.
        var queue: Int?
        var isKernelHelper: Bool
        /// Nanoseconds.
        var user: UInt64
        var system: UInt64

        /// PF_IO_WORKER (linux/sched.h).
        private static let ioWorker: UInt64 = 0x10
        private static let nanosecondsPerTick = 1_000_000_000 / UInt64(max(sysconf(Int32(_SC_CLK_TCK)), 1))

        /// nil when it is not what the kernel writes.
        init?(_ bytes: [UInt8]) {
            guard let open = bytes.firstIndex(of: UInt8(ascii: "(")),
                let close = bytes.lastIndex(of: UInt8(ascii: ")")), open < close
            else { return nil }
            // Behind the name, which may hold anything: field 3, a letter, then numbers.
            let fields = bytes[(close + 1)...].split(separator: UInt8(ascii: " "))
            func number(_ field: Int) -> UInt64? {
                guard fields.count > field - 3 else { return nil }
                return UInt64(String(decoding: fields[field - 3], as: UTF8.self))
            }
            guard let flags = number(9), let user = number(14), let system = number(15) else { return nil }
            let name = String(decoding: bytes[(open + 1)..<close], as: UTF8.self)
            queue = name.hasPrefix("ubd-q") ? Int(name.dropFirst(5)) : nil
            isKernelHelper = flags & Stat.ioWorker != 0
            self.user = user &* Stat.nanosecondsPerTick
            self.system = system &* Stat.nanosecondsPerTick
        }
    }
}
