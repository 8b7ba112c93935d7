import BrokerInterface
import Policy
import SystemCalls
import Targets

/// Which control group a device has, and its limits.
extension Broker {
    /// The control group of a device, with the limits from its add. As for all limits, the user is an account. A group
    /// that an earlier broker created keeps its path, even if /etc/subuid has changed.
    func group(of device: ManagedDevice) -> DeviceGroup {
        DeviceGroup(
            user: device.info.controlGroup.flatMap(DeviceGroup.user(inPath:)) ?? account(of: device.owner),
            device: device.id, generation: device.info.generation, limits: device.info.groupLimits ?? GroupLimits(),
            isOfMemory: device.diskBytes > 0 || hasMap(device))
    }

    /// A block map is memory that its owner can keep, too, whatever the layer is.
    private func hasMap(_ device: ManagedDevice) -> Bool {
        (try? TargetManifest.named(device.info.target))?.hasBlockMap == true
    }

    /// Opens the group for a further worker of a device while `body` runs; nil when there are no groups. If that fails,
    /// only an add fails: a device in use gets its worker without a group.
    func withGroup<Result>(
        of device: ManagedDevice, _ body: (Int32?) throws(SystemError) -> Result
    ) throws(SystemError) -> Result {
        guard let groups else { return try body(nil) }
        let group = group(of: device)
        let entry: FileDescriptor
        do throws(SystemError) { entry = try groups.enter(group) } catch {
            if device.step == .adding { throw error }
            device.info.controlGroup = nil
            Log.warning("control-group", ("group", group.name), ("why", "\(error)"))
            return try body(nil)
        }
        device.info.controlGroup = "\(groups.path)/\(group.name)"
        return try body(entry.raw)
    }

    /// The limits of the groups for a new device under this line. The user's group is created once for all devices, so
    /// its limits are the widest of all lines that allow the user something.
    func groupLimits(_ rule: AccessRule, _ peer: PeerCredentials, _ plan: AddPlan) -> GroupLimits? {
        guard let groups else { return nil }
        let limits = policy.overview(for: accessPeer(peer), targets: TargetList.names)?.limits
        var result = GroupLimits(rule.limits, ofUser: limits ?? rule.limits)
        if result.deviceTasks == nil {
            result.deviceTasks = Int64(clamping: 2 * WorkerLaunch.processes(queues: plan.queues))
        }
        return result.kept(by: groups.controllers)
    }
}
