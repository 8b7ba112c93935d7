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
        let limits = overview.map { overview in
            Limits(
                maxDevices: clamp(overview.limits.maxDevices), maxQueues: clamp(overview.limits.maxQueues),
                maxDepth: clamp(overview.limits.maxDepth), maxMemoryBytes: clamp(overview.limits.maxMemoryBytes),
                maxSizeBytes: overview.limits.maxSizeBytes.map { Int64(clamping: $0) }, targets: overview.targets,
                readOnlyOnly: overview.limits.readOnlyOnly, zeroCopy: overview.limits.zeroCopy,
                maxStarts: overview.limits.maxStarts.map { Int64(clamping: $0) },
                penalty: overview.limits.penalty.map { Int64(clamping: $0) }, ids: overview.limits.ids?.text,
                cpus: overview.limits.cpus?.text, groups: groupLimits(overview.limits))
        }
        return InfoReply(
            version: UBDVersion.text, kernel: kernelRelease(), featureBits: bits,
            features: KernelFeature.names(in: bits), ignoredFeatures: KernelFeature.ignoredNames(in: bits),
            targets: targets, devices: Int64(devices.count),
            devicesOfCaller: Int64(devices.values.filter { $0.owner == peer.uid }.count),
            workerUidsFree: Int64(uids.free), workerGroup: configuration.workerGroup,
            socket: configuration.socketPath, controlGroup: groups?.path, controllers: groups?.controllers ?? [],
            started: started, permitted: limits != nil,
            rule: overview?.rules.first?.rule.text, limits: limits)
    }

    /// The limits that the controllers can enforce; nil when there are none.
    private func groupLimits(_ limits: AccessLimits) -> GroupLimits? {
        guard let groups else { return nil }
        let kept = GroupLimits(limits, ofUser: limits).kept(by: groups.controllers)
        return kept == GroupLimits() ? nil : kept
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
