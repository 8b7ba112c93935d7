/// Detects a worker that uses processor time without work, or a thread that uses time without progress. `ProgressWatch`
/// examines a worker only while requests are in flight; this type examines its processor time at any time.
///
/// It relies on the kernel: the threads' times, the requests in flight, and the block layer's counters. From the worker
/// it takes only the wake-up counts, which can only excuse a queue's thread while the device is in use.
struct BusyWatch {
    /// The kernel's times of one thread, in nanoseconds.
    struct Thread: Equatable {
        /// The queue that it serves; nil for other threads.
        var queue: Int?
        /// Time in user mode.
        var user: UInt64
        /// Time in user mode and in system calls.
        var total: UInt64
    }

    struct Detail: Equatable {
        /// The worker's own threads by thread id, without the kernel's helper threads of its rings.
        var threads: [Int32: Thread]
        /// The content of /sys/block/DISK/stat, which changes with every request. nil when unreadable; then the disk's
        /// activity is unknown.
        var activity: [UInt8]?
    }

    /// A worker without work uses no time, so a tenth of a processor is much; a limit of its control group or a busy
    /// host may leave it no more.
    private static let idleShare: UInt64 = 10
    /// A thread whose queue is in use must spend a quarter of a processor in user mode to count as looping.
    private static let circleShare: UInt64 = 4

    /// The number of periods per limit.
    private static let periods: UInt64 = 4

    /// The current period: its begin, and the process' time until then.
    private var period: (began: UInt64, spent: UInt64)?
    /// Taken at the end of the first of several periods in which the process was busy without progress.
    private var snapshot: (taken: UInt64, detail: Detail, turns: [UInt64])?
    /// No look since the snapshot has found a request in flight.
    private var isIdle = true

    /// Examines the worker at `now` (nanoseconds). Returns true when it was busy for `limit` or longer without
    /// progress.
    ///
    /// - Parameters:
    ///   - inFlight: the kernel's requests in flight.
    ///   - turns: each queue's wake-ups, as the worker reports them; empty when unknown.
    ///   - spent: the process' processor time, called four times per `limit`. nil when unknown.
    ///   - detail: called only when that time was much.
    mutating func look(
        now: UInt64, limit: UInt64, inFlight: Int, turns: [UInt64], spent: () -> UInt64?, detail: () -> Detail?
    ) -> Bool {
        if inFlight > 0 { isIdle = false }
        if let period, now &- period.began < limit / BusyWatch.periods { return false }
        guard let all = spent() else {
            self = BusyWatch()
            return false
        }
        let before = period
        period = (now, all)
        guard let before, all &- before.spent >= (now - before.began) / BusyWatch.idleShare, all >= before.spent,
            let current = detail()
        else {
            snapshot = nil
            return false
        }
        if let snapshot, doesNothing(since: snapshot, current, turns, now) { return now - snapshot.taken >= limit }
        snapshot = (now, current, turns)
        isIdle = inFlight == 0
        return false
    }

    private func doesNothing(
        since snapshot: (taken: UInt64, detail: Detail, turns: [UInt64]), _ current: Detail, _ turns: [UInt64],
        _ now: UInt64
    ) -> Bool {
        let elapsed = now - snapshot.taken
        var (idleTime, circles): (UInt64, Bool) = (0, false)
        for (number, thread) in current.threads {
            guard let earlier = snapshot.detail.threads[number], thread.total >= earlier.total else { continue }
            idleTime &+= thread.total - earlier.total
            // Other threads hardly use user time: the main thread waits, and the range thread makes system calls.
            let stands = thread.queue.map {
                turns.indices.contains($0) && snapshot.turns.indices.contains($0) && turns[$0] == snapshot.turns[$0]
            }
            let user = thread.user &- earlier.user
            if stands ?? true, thread.user >= earlier.user, user >= elapsed / BusyWatch.circleShare { circles = true }
        }
        let hadNothingToDo = isIdle && current.activity != nil && current.activity == snapshot.detail.activity
        return circles || hadNothingToDo && idleTime >= elapsed / BusyWatch.idleShare
    }
}
