import BrokerInterface
import SystemCalls

extension Broker {
    /// A number for a new device: the wanted one, or the first that is free as far as we know, and none of `tried`. One of
    /// which anything of ours lies in the run folder is not free: its record may be damaged, and its device serve.
    func number(_ wanted: UInt32?, except tried: Set<UInt32>) throws(InterfaceError) -> UInt32 {
        let taken: Set<UInt32>
        do throws(SystemError) { taken = try store.takenIDs() } catch {
            throw StartErrors.broken("read the devices' records", error)
        }
        if let wanted {
            if devices[wanted] != nil { throw StartErrors.isInUse(wanted) }
            if taken.contains(wanted) { throw StartErrors.isKept(wanted) }
            return wanted
        }
        let last = UInt32(AddPlan.ids.upperBound)
        let free =
            tried.count < 1024
            ? (0...last).first { devices[$0] == nil && !tried.contains($0) && !taken.contains($0) } : nil
        guard let free else { throw StartErrors.noFreeNumber }
        return free
    }
}
