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

    /// Nanoseconds that the thread of each queue has run in its own code.
    typealias TimeSpent = [Int: UInt64]

    private var last: [QueueStatistics] = []
    /// Nanoseconds of CLOCK_MONOTONIC since when the device as a whole has given no request back.
    private var wholeSince: UInt64?
    /// The same for each queue that holds requests: that another one serves is no excuse.
    private var queueSince: [UInt64?] = []
    /// The same for each queue whose thread has not woken up: it may have no work, or run in circles.
    private var silentSince: [UInt64] = []
    /// In the middle of the longest standstill: what the threads had spent by then.
    private var checkpoint: (time: UInt64, spent: TimeSpent)?
    /// A wait for the file has been reported.
    var isReported = false

    /// Looks at a sample taken at `now`; `limit` in nanoseconds. `spent` is asked only when nothing has moved for long.
    mutating func look(
        _ sample: Sample, now: UInt64, limit: UInt64, spent: () -> TimeSpent = { [:] }
    ) -> Verdict {
        note(sample, now)
        let standstill = ([wholeSince] + queueSince).compactMap { $0 }.map { now - $0 }.max() ?? 0
        let silence = silentSince.map { now - $0 }.max() ?? 0
        guard max(standstill, silence) >= limit / 2 else {
            checkpoint = nil
            return .fine
        }
        if checkpoint == nil { checkpoint = (now, spent()) }
        guard max(standstill, silence) >= limit else { return .fine }
        let isRunning = runsInCircles(now, limit, spent)
        guard standstill >= limit || isRunning else { return .fine }
        // Only a worker that runs, and sleeps, and holds a request waits for its file. Its claims are not trusted further
        // than that: one that lies keeps its own device waiting, and nobody else.
        let holdsRequests = sample.claims.contains { $0.taken > $0.committed }
        let waits = holdsRequests && sample.hasFile && !sample.isStopped && !isRunning
        return waits ? .waitsForFile : .hung
    }

    private mutating func note(_ sample: Sample, _ now: UInt64) {
        let before = last.count == sample.claims.count ? last : nil
        let moved = sample.claims.indices.map { sample.claims[$0].committed != before?[$0].committed }
        guard sample.inFlight > 0 else {
            last = sample.claims
            (wholeSince, queueSince, silentSince) = (nil, [], [])
            return
        }
        if wholeSince == nil || moved.contains(true) { wholeSince = now }
        if queueSince.count != moved.count {
            queueSince = moved.map { _ in nil }
            silentSince = moved.map { _ in now }
        }
        for (queue, claims) in sample.claims.enumerated() {
            if claims.turns != before?[queue].turns { silentSince[queue] = now }
            if claims.taken <= claims.committed {
                queueSince[queue] = nil
            } else if moved[queue] || queueSince[queue] == nil {
                queueSince[queue] = now
            }
        }
        last = sample.claims
    }

    /// A thread that does not wake up has spent nearly all the time since the checkpoint in its own code. One that waits for
    /// its file spends none.
    private func runsInCircles(_ now: UInt64, _ limit: UInt64, _ spent: () -> TimeSpent) -> Bool {
        guard let checkpoint, now > checkpoint.time else { return false }
        let most = (now - checkpoint.time) / 5 * 4
        return spent().contains { queue, time in
            guard silentSince.indices.contains(queue), now - silentSince[queue] >= limit / 2 else { return false }
            return checkpoint.spent[queue].map { time >= $0 && time - $0 >= most } ?? false
        }
    }
}
