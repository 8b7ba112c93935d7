import WorkerProtocol

/// Detects a worker that has requests and makes no progress.
struct ProgressWatch {
    /// The state at one look.
    struct Sample {
        /// The kernel's requests in flight.
        var inFlight: Int
        /// The values that each queue reports.
        var claims: [QueueStatistics]
        /// A thread of it is stopped (SIGSTOP, a debugger).
        var isStopped: Bool
        /// It has a file for which it may wait.
        var hasFile = true
    }

    enum Verdict: Equatable {
        case fine
        /// It holds requests and waits for its file: a new worker would wait, too.
        case waitsForFile
        /// It does not take its requests, cannot run, or loops: a new worker helps.
        case hung
    }

    /// Nanoseconds in user mode of each queue's thread.
    typealias TimeSpent = [Int: UInt64]

    private var last: [QueueStatistics] = []
    /// CLOCK_MONOTONIC in nanoseconds since when the device has committed no request.
    private var wholeSince: UInt64?
    /// The same for each queue that holds requests: another queue's progress does not excuse it.
    private var queueSince: [UInt64?] = []
    /// The same for each queue whose thread has not woken up: it has no work, or it loops.
    private var silentSince: [UInt64] = []
    /// Taken halfway through the longest standstill: the threads' times until then.
    private var checkpoint: (time: UInt64, spent: TimeSpent)?
    /// A wait for the file has been reported.
    var isReported = false

    /// Examines a sample taken at `now`; `limit` is in nanoseconds. `spent` is called only after a long standstill.
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
        // A worker waits for its file only if it holds a request, is not stopped, and sleeps. Its reported values are
        // trusted only that far: with false values it keeps only its own device waiting.
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

    /// Whether a thread that does not wake up has spent nearly all time since the checkpoint in user mode. A thread
    /// that waits for its file spends none.
    private func runsInCircles(_ now: UInt64, _ limit: UInt64, _ spent: () -> TimeSpent) -> Bool {
        guard let checkpoint, now > checkpoint.time else { return false }
        let most = (now - checkpoint.time) / 5 * 4
        return spent().contains { queue, time in
            guard silentSince.indices.contains(queue), now - silentSince[queue] >= limit / 2 else { return false }
            return checkpoint.spent[queue].map { time >= $0 && time - $0 >= most } ?? false
        }
    }
}
