/// How long a device has waited for its server: from the loss of its connections until the server has answered a request over
/// new ones. A server that accepts connections and answers nothing does not end it.
struct ServerWait {
    /// A worker that serves over new connections.
    struct Serving {
        /// Nanoseconds of the monotonic clock.
        var since: UInt64
        /// What the device's workers had committed until then.
        var committed: UInt64
    }

    /// When it began, in nanoseconds of the monotonic clock; nil: the device does not wait.
    var began: UInt64?
    /// The present worker, while it has answered nothing. Nil while there is none, and when the device does not wait.
    private(set) var serving: Serving?
    /// How many times in a row new connections were lost before the device had completed a request.
    private(set) var unanswered: Int64 = 0
    /// The alarm for its end is set. There is one at a time, whatever the owner's server and keeper do.
    var isTimed = false

    /// Nanoseconds after which a device that serves and has no request does not wait any more: what had waited would be in flight.
    static let settled: UInt64 = 1_000_000_000

    /// The connections are lost, or new ones were no good. `committed`: by all workers until now; nil when that is unknown.
    mutating func lost(now: UInt64, committed: UInt64?) {
        if let serving {
            if committed == serving.committed { unanswered += 1 } else { end() }
        }
        serving = nil
        if began == nil { (began, unanswered) = (now, 0) }
    }

    /// A worker begins to serve over new connections. `committed`: as above; nil ends the wait, because nothing could tell later
    /// that the server answers.
    mutating func served(now: UInt64, committed: UInt64?) {
        guard began != nil else { return }
        guard let committed else { return end() }
        serving = Serving(since: now, committed: committed)
    }

    /// A look at the device while a worker serves; `inFlight` is the kernel's number of requests. Returns true when that has ended
    /// the wait: a request was completed, or nobody has one.
    mutating func look(now: UInt64, committed: UInt64?, inFlight: Int) -> Bool {
        guard let serving else { return false }
        let isIdle = inFlight == 0 && now >= serving.since + ServerWait.settled
        guard committed != serving.committed || isIdle else { return false }
        end()
        return true
    }

    private mutating func end() { (began, serving, unanswered) = (nil, nil, 0) }
}

extension ManagedDevice {
    /// What its workers have committed; nil when this broker can not read it.
    var committed: UInt64? {
        guard let statistics, statistics.isReadable else { return nil }
        return statistics.total.committed
    }
    /// Whether its worker says that it has taken requests and not given them back. It counts flushes, which the block layer does
    /// not. A lying worker harms only its own device. nil when this broker can not read it.
    var holdsRequests: Bool? {
        guard let statistics, statistics.isReadable else { return nil }
        return statistics.claims.contains { $0.taken > $0.committed }
    }
}
