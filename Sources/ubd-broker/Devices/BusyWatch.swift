/// Whether a worker spends processor time although it has nothing to do, or a thread of it spends time and finishes nothing.
/// `ProgressWatch` sees a worker only while requests wait for it; this one looks at the worker's time whether any do or not.
///
/// What it goes by is the kernel's word: the threads' times, the requests in flight, the block layer's own counts. Of the
/// worker's claims only its turns are used, and they can only excuse one queue's thread while the device is in use.
struct BusyWatch {
    /// What the kernel says of one thread, in nanoseconds.
    struct Thread: Equatable {
        /// The queue that it serves; nil for the main thread.
        var queue: Int?
        /// Time in its own code.
        var user: UInt64
        /// Time in its own code and in system calls.
        var total: UInt64
    }

    struct Detail: Equatable {
        /// The worker's own threads by number; the kernel's helper threads of its rings are left out.
        var threads: [Int32: Thread]
        /// What the block layer counts of the disk (/sys/block/DISK/stat), as it is: it changes with every request. nil when it
        /// can't be read, and then nothing is known.
        var activity: [UInt8]?
    }

    /// A worker that has nothing to do uses no time at all. One part in so many is much, and a limit of its control group or
    /// a crowded host may leave it no more than that.
    private static let idleShare: UInt64 = 10
    /// A thread whose queue is in use needs a good part of a processor, in its own code, to be taken for one that runs in circles.
    private static let circleShare: UInt64 = 4

    /// So many periods of looking are in a limit.
    private static let periods: UInt64 = 4

    /// The period that is being looked at: when it began, and what the whole process had spent by then.
    private var period: (began: UInt64, spent: UInt64)?
    /// At the end of the first of some periods in which the process was busy and did nothing.
    private var snapshot: (taken: UInt64, detail: Detail, turns: [UInt64])?
    /// No look since the snapshot has found a request in flight.
    private var isIdle = true

    /// Looks at `now` (nanoseconds). True when the worker was busy for `limit` or longer and had nothing to show for it.
    ///
    /// - Parameters:
    ///   - inFlight: requests that the kernel waits for.
    ///   - turns: each queue's wake-ups, as the worker claims; empty when they are not known.
    ///   - spent: processor time of the whole process; asked four times in a `limit`. nil when the kernel does not tell.
    ///   - detail: asked only when that was much.
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
            // The main thread only ever waits.
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
