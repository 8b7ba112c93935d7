import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import ubd_broker

/// A host with a device of target nbd, which has a connection for each of its queues.
struct NBDHost {
    let host: Host
    /// What the server agrees to.
    static let agreed = [
        OptionValue("size", "1048576"), OptionValue("block-size", "512"), OptionValue("export-flags", "13"),
        OptionValue("maximum-block", "65536"),
    ]

    static func request(queues: Int64 = 1, recovery: String? = nil, _ more: [OptionValue] = []) -> AddRequest {
        AddRequest(
            target: "nbd", queues: queues, recovery: recovery, fileName: "nbd://server/export", options: agreed + more)
    }

    /// `features`: of the kernel; without perIODaemon it is one before 6.16.
    init(
        features: UblkFeatures = [.perIODaemon], policy: String? = nil, _ request: AddRequest = NBDHost.request()
    ) throws {
        host = try Host(policy: policy)
        host.kernel.features = features
        _ = try host.add(request, parking: NBDHost.park).get()
    }

    /// As a client that has connections.
    static func park(_ socket: Int32) { _ = try? send(socket, [0], files: [0]) }

    var device: ManagedDevice? { host.broker.devices[0] }
    var info: Device? { device.map(host.broker.description) }
    var recoveries: Int { host.kernel.log.filter { $0 == "startUserRecovery 0" }.count }

    /// Its worker ends; the kernel notices.
    func end(_ change: ProcessChange = .exited(WorkerExit.connectionLost)) {
        host.kernel.quiesce(0)
        host.workers.last?.die(change)
    }

    /// Its worker completes a request.
    func answer() throws {
        guard let page = device?.statistics else { return }
        let memory = try Mapping.shared(page.file.raw, offset: 0, bytes: 4096, writable: true)
        let place = StatisticsPage.Word.requests * 8
        let before = memory.base.load(fromByteOffset: place, as: UInt64.self)
        memory.base.storeBytes(of: before + 1, toByteOffset: place, as: UInt64.self)
        withExtendedLifetime(memory) {}
    }

    func recover(
        as peer: PeerCredentials = Host.alice, _ options: [OptionValue] = NBDHost.agreed,
        parking: ((Int32) -> Void)? = nil
    ) throws -> Result<Device, InterfaceError> {
        try host.recover(
            RecoverRequest(id: 0, options: options), as: peer, files: Int(info?.queues ?? 0), parking: parking)
    }
}
