import SystemCalls

/// The recent deaths of a device's workers: one may be an accident and is replaced at once, many are a fault that no
/// new worker cures.
struct DeathLog {
    /// With more deaths within the window, no further worker is started.
    static let most = 8
    /// Milliseconds.
    static let longestPause = 10_000

    private var times: [UInt64] = []

    /// Adds a death and drops those that are more than `window` seconds old.
    mutating func add(window: Int, now: UInt64 = monotonicNanoseconds()) {
        times.append(now)
        times.removeAll { now - $0 > UInt64(window) * 1_000_000_000 }
    }

    /// The number of deaths within the window.
    var count: Int { times.count }

    var isTooMany: Bool { times.count > DeathLog.most }

    /// Milliseconds of back-off before the next worker: none after the first death, then doubled each time.
    var pauseBeforeNext: Int {
        guard times.count > 1 else { return 0 }
        return min(50 << min(times.count - 2, 16), DeathLog.longestPause)
    }
}
