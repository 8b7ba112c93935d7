import BrokerInterface
import Policy
import SystemCalls

extension Broker {
    /// A number for a new device under a line of the access policy: the wanted one, which the line allows, or the first
    /// free one that the line may assign automatically, without those in `tried`. A number with any file of ours in the
    /// run folder is not free: its record may be damaged while its device serves.
    func number(_ wanted: UInt32?, _ rule: AccessRule, except tried: Set<UInt32>) throws(InterfaceError) -> UInt32 {
        let taken: Set<UInt32>
        do throws(SystemError) { taken = try store.takenIDs() } catch {
            throw StartErrors.broken("read the devices' records", error)
        }
        if let wanted {
            if devices[wanted] != nil { throw StartErrors.isInUse(wanted) }
            if taken.contains(wanted) { throw StartErrors.isKept(wanted) }
            return wanted
        }
        guard tried.count < 1024 else { throw StartErrors.noFreeNumber }
        for range in policy.automaticIDs(for: rule).flatMap(\.ranges) {
            let free = (UInt32(range.lowerBound)...UInt32(range.upperBound))
                .first { devices[$0] == nil && !tried.contains($0) && !taken.contains($0) }
            if let free { return free }
        }
        throw StartErrors.noFreeNumber
    }
}
