import BrokerInterface
import Glibc
import Numbers
import Policy
import SystemCalls
import Targets

extension Broker {
    /// The reply to Info for this client.
    func info(for peer: PeerCredentials) -> InfoReply {
        // Opens the driver if its module was loaded since the start.
        try? driver.ready()
        let bits = driver.features.rawValue
        let targets = TargetList.names
        let overview = policy.overview(for: accessPeer(peer), targets: targets)
        return InfoReply {
            $0.version = UBDVersion.text
            $0.kernel = kernelRelease()
            $0.featureBits = bits
            $0.features = KernelFeature.names(in: bits)
            $0.ignoredFeatures = KernelFeature.ignoredNames(in: bits)
            $0.targets = targets
            $0.devices = Int64(devices.count)
            $0.devicesOfCaller = Int64(devices.values.filter { $0.owner == peer.uid }.count)
            $0.workerUidsFree = Int64(uids.free)
            $0.workerGroup = configuration.workerGroup
            $0.socket = configuration.socketPath
            $0.controlGroup = groups?.path
            $0.controllers = groups?.controllers ?? []
            $0.descriptorStore = descriptorStore.flatMap { $0.offer.room > 0 ? Int64($0.offer.room) : nil }
            $0.descriptorStoreProblem = descriptorStore?.offer.problem
            $0.started = started
            $0.permitted = overview != nil
            $0.rule = overview?.rules.first?.rule.text
            $0.limits = overview.map { limits($0.limits, targets: $0.targets) }
        }
    }

    private func limits(_ limits: AccessLimits, targets: [String]) -> Limits {
        Limits {
            $0.maxDevices = clamp(limits.maxDevices)
            $0.maxQueues = clamp(limits.maxQueues)
            $0.maxDepth = clamp(limits.maxDepth)
            $0.maxMemoryBytes = clamp(limits.maxMemoryBytes)
            $0.memoryDiskBytes = limits.memoryDisks.map { Int64(clamping: $0) }
            $0.maxSizeBytes = limits.maxSizeBytes.map { Int64(clamping: $0) }
            $0.targets = targets
            $0.readOnlyOnly = limits.readOnlyOnly
            $0.zeroCopy = limits.zeroCopy
            $0.maxStarts = limits.maxStarts.map { Int64(clamping: $0) }
            $0.penalty = limits.penalty.map { Int64(clamping: $0) }
            $0.ids = limits.ids?.text
            $0.cpus = limits.cpus?.text
            $0.groups = groupLimits(limits)
            $0.connections = mostConnections(limits, targets: targets)
            $0.anyServer = $0.connections == nil ? nil : limits.anyServer
        }
    }

    /// The limits that the controllers can enforce; nil when there are none.
    private func groupLimits(_ limits: AccessLimits) -> GroupLimits? {
        guard let groups else { return nil }
        let kept = GroupLimits(limits, ofUser: limits).kept(by: groups.controllers)
        return kept == GroupLimits() ? nil : kept
    }

    /// The maximum of any target with connections; nil when the caller may use no such target.
    private func mostConnections(_ limits: AccessLimits, targets: [String]) -> Int64? {
        let hasServers = TargetList.all.contains { $0.takesSockets && targets.contains($0.name) }
        return hasServers ? Int64(clamping: limits.connections ?? AccessLimits.usualConnections) : nil
    }

    /// A limit that is not written does not apply.
    private func clamp(_ limit: UInt64?) -> Int64 { limit.map { Int64(clamping: $0) } ?? .max }
}

/// As `uname -r` prints it.
func kernelRelease() -> String {
    var name = utsname()
    uname(&name)
    return withUnsafeBytes(of: &name.release) { raw in
        String(decoding: raw.prefix { $0 != 0 }, as: UTF8.self)
    }
}
