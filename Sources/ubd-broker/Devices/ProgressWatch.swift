import WorkerProtocol

/// Whether a worker that has work gets on with it.
struct ProgressWatch {
    /// What was seen in one look.
    struct Sample {
        /// Requests that the kernel waits for.
        var inFlight: Int
        /// What the worker claims, by queue.
        var claims: [QueueStatistics]
        /// A thread of it is stopped (SIGSTOP, a debugger).
        var isStopped: Bool
        /// There is a file for which it may have to wait.
        var hasFile = true
    }

    enum Verdict: Equatable {
        case fine
        /// It holds requests and waits for its file: a new worker would wait too.
        case waitsForFile
        /// It has requests and does not take them, or can't run, or runs in circles: a new worker helps.
        case hung
    }

    /// Nanoseconds that each thread has run in its own code, by thread id.
    typealias TimeSpent = [Int32: UInt64]

    private var last: [QueueStatistics] = []
    /// Nanoseconds of CLOCK_MONOTONIC since when the device as a whole has given no request back.
    private var wholeSince: UInt64?
    /// The same for each queue that holds requests: that another one serves is no excuse.
    private var queueSince: [UInt64?] = []
    /// In the middle of the longest standstill: what the threads had spent by then.
    private var checkpoint: (time: UInt64, spent: TimeSpent)?
    /// A wait for the file has been reported.
    var isReported = false

    /// Looks at a sample taken at `now`; `limit` in nanoseconds. `spent` is asked only when nothing has moved for long.
    mutating func look(
        _ sample: Sample, now: UInt64, limit: UInt64, spent: () -> TimeSpent = { [:] }
    ) -> Verdict {
        note(sample, now)
        let standstills = ([wholeSince] + queueSince).compactMap { $0 }.map { now - $0 }
        guard let longest = standstills.max(), longest >= limit / 2 else {
            checkpoint = nil
            return .fine
        }
        if checkpoint == nil { checkpoint = (now, spent()) }
        guard longest >= limit else { return .fine }
        // Only a worker that runs, and sleeps, and holds a request waits for its file. Its claims are not trusted further
        // than that: one that lies keeps its own device waiting, and nobody else.
        let holdsRequests = sample.claims.contains { $0.taken > $0.committed }
        let waits = holdsRequests && sample.hasFile && !sample.isStopped && !isRunning(now, spent)
        return waits ? .waitsForFile : .hung
    }

    private mutating func note(_ sample: Sample, _ now: UInt64) {
        let known = last.count == sample.claims.count
        let moved = sample.claims.indices.map { !known || sample.claims[$0].committed != last[$0].committed }
        last = sample.claims
        guard sample.inFlight > 0 else {
            wholeSince = nil
            queueSince = []
            return
        }
        if wholeSince == nil || moved.contains(true) { wholeSince = now }
        if queueSince.count != moved.count { queueSince = moved.map { _ in nil } }
        for (queue, claims) in sample.claims.enumerated() {
            if claims.taken <= claims.committed {
                queueSince[queue] = nil
            } else if moved[queue] || queueSince[queue] == nil {
                queueSince[queue] = now
            }
        }
    }

    /// A thread has spent nearly all the time since the checkpoint in its own code. The kernel's helper threads, which may
    /// be busy with the file, have no code of their own.
    private func isRunning(_ now: UInt64, _ spent: () -> TimeSpent) -> Bool {
        guard let checkpoint, now > checkpoint.time else { return false }
        let most = (now - checkpoint.time) / 5 * 4
        return spent().contains { thread, time in
            checkpoint.spent[thread].map { time >= $0 && time - $0 >= most } ?? false
        }
    }
}
