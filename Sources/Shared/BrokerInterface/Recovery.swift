/// What happens when a device's worker dies (Documentation/block/ublk.rst, UBLK_F_USER_RECOVERY*).
public enum RecoveryMode: String, Sendable, CaseIterable {
    /// A new worker takes over and gets the requests in flight again. Users notice only a delay.
    case reissue
    /// A new worker takes over. Requests in flight fail; later ones wait for it.
    case queue
    /// A new worker takes over. Until then every request fails at once (Linux 6.13).
    case fail
    /// No new worker: requests fail until the device is deleted.
    case none

    public static let `default` = RecoveryMode.reissue

    /// One sentence without a full stop, for help texts.
    public var summary: String {
        switch self {
        case .reissue: "a new worker takes over, requests under way are repeated"
        case .queue: "a new worker takes over, requests under way fail, later ones wait"
        case .fail: "a new worker takes over, requests fail until it is there (Linux 6.13)"
        case .none: "no new worker: requests fail until the device is deleted"
        }
    }
}
