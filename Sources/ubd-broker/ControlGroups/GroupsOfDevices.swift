import BrokerInterface
import Policy
import SystemCalls

/// Which control group a device of the broker has, and what it keeps.
extension Broker {
    /// The control group of a device, with the limits that it was added with. A user is an account, as for all limits; one that
    /// an earlier broker has made is found where it is, whatever /etc/subuid says now.
    func group(of device: ManagedDevice) -> DeviceGroup {
        DeviceGroup(
            user: device.info.controlGroup.flatMap(DeviceGroup.user(inPath:)) ?? account(of: device.owner),
            device: device.id, generation: device.info.generation, limits: device.info.groupLimits ?? GroupLimits())
    }

    /// Opens the group for a further worker of a device, for as long as `body` runs; nil where there are none. A device that
    /// its users have already gets a worker in any case.
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

    /// What the groups of a new device of that line keep. A user's limits are the widest of the lines that let the user have
    /// anything: the user's group is made once for devices of all of them.
    func groupLimits(_ rule: AccessRule, _ peer: PeerCredentials, _ plan: AddPlan) -> GroupLimits? {
        guard let groups else { return nil }
        let limits = policy.overview(for: accessPeer(peer), targets: TargetCatalog.all.map(\.name))?.limits
        var result = GroupLimits(rule.limits, ofUser: limits ?? rule.limits)
        if result.deviceTasks == nil {
            result.deviceTasks = Int64(clamping: 2 * WorkerLaunch.processes(queues: plan.queues))
        }
        return result.kept(by: groups.controllers)
    }
}
