import Glibc
import SystemCalls

/// The processor times of a worker's threads in nanoseconds, from /proc/PID/stat and /proc/PID/task/TID/stat
/// (proc_pid_stat(5)). The kernel's unit is 10 ms.
enum ThreadTimes {
    /// The time of all threads, including ended ones and the kernel's helpers; nil when the process is gone.
    static func ofProcess(_ pid: Int32) -> UInt64? {
        guard let bytes = try? readFile("/proc/\(pid)/stat"), let stat = Stat(bytes) else { return nil }
        return stat.user &+ stat.system
    }

    /// The times of the worker's own threads. The kernel's helper threads of its rings work on requests and are
    /// omitted. They are recognized by the kernel's flag, since a worker could give its threads any name.
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

    /// The time in user mode of each queue's thread.
    static func ofQueues(_ pid: Int32) -> ProgressWatch.TimeSpent {
        var result: ProgressWatch.TimeSpent = [:]
        for thread in ofThreads(pid).values {
            if let queue = thread.queue { result[queue] = thread.user }
        }
        return result
    }

    /// One such file.
    struct Stat: Equatable {
        /// The queue that the thread's name tells: "ubd-q0" is the thread of queue 0.
        var queue: Int?
        var isKernelHelper: Bool
        /// Nanoseconds.
        var user: UInt64
        var system: UInt64

        /// PF_IO_WORKER (linux/sched.h).
        private static let ioWorker: UInt64 = 0x10
        private static let nanosecondsPerTick = 1_000_000_000 / UInt64(max(sysconf(Int32(_SC_CLK_TCK)), 1))

        /// nil for malformed content.
        init?(_ bytes: [UInt8]) {
            guard let stat = ProcessStat(bytes), let flags = stat.flags, let user = stat.userTime,
                let system = stat.systemTime
            else { return nil }
            let name = stat.name
            queue = name.hasPrefix("ubd-q") ? Int(name.dropFirst(5)) : nil
            isKernelHelper = flags & Stat.ioWorker != 0
            self.user = user &* Stat.nanosecondsPerTick
            self.system = system &* Stat.nanosecondsPerTick
        }
    }
}
