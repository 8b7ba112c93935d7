import BrokerInterface
import Glibc
import KernelABI
import Numbers
import Targets
import WorkerProtocol

@testable import ubd_broker

/// A conversation: what the broker waits for, and messages of any bytes. Each message that is admitted was waited for, is
/// the only one, survives being written, and can be put to the use that the broker makes of it.
func testWorkerMessages(_ input: [UInt8]) {
    var script = Script(input)
    var expected = WorkerExpectation.nothing
    while !script.isAtEnd {
        switch script.next(UInt8.self) % 4 {
        case 0: expected = .geometry
        case 1: expected = .sealed
        default:
            let bytes = script.next(bytes: Int(script.next(UInt8.self)))
            let before = expected
            switch expected.take(bytes) {
            case .message(let message):
                require(message.encoded() == bytes, "\(message) is written otherwise than it was read")
                require(expected == .nothing, "\(message) leaves \(expected) open")
                require(mayCome(message, before), "\(message) although \(before) was expected")
                use(message)
            case .violation: require(expected == before, "a violation changes what is expected")
            default: require(false, "no message and no violation")
            }
        }
    }
}

private func mayCome(_ message: WorkerMessage, _ expected: WorkerExpectation) -> Bool {
    switch message {
    case .geometry: expected == .geometry
    case .sealed: expected == .sealed
    case .failed: expected != .nothing
    }
}

/// A device in the middle of an add, to explain failures for.
nonisolated(unsafe) private let device = {
    let info = Device {
        ($0.id, $0.generation, $0.owner, $0.target) = (0, 1, 1000, "loop")
        $0.node = "/dev/ublkb0"
        ($0.queues, $0.depth, $0.maxIOBytes) = (1, 1, 4096)
    }
    return ManagedDevice(info: info, memoryBytes: 4096, step: .adding)
}()

private func use(_ message: WorkerMessage) {
    switch message {
    case .sealed: return
    case .failed(let failure):
        let error = StartErrors.explain(failure, device, workerGID: 990)
        require(!error.message.isEmpty && !error.message.unicodeScalars.contains { $0.isControl }, "\(error)")
    case .geometry(let geometry):
        _ = PackedVersion.text(geometry.version)
        for mode in DataMode.allCases {
            let parameters = DiskParameters.make(geometry, maxIOBytes: 4096, mode: mode)
            // What the driver demands (ublk_validate_params, drivers/block/ublk_drv.c); a refusal is late but harmless, a
            // disk larger than announced is not.
            require(parameters.diskSectors << 9 == geometry.size, "\(parameters.diskSectors) sectors of \(geometry)")
            require((9...12).contains(parameters.logicalBlockShift), "\(geometry)")
            require((parameters.logicalBlockShift...20).contains(parameters.physicalBlockShift), "\(geometry)")
            if let discard = parameters.discard { require(discard.granularity > 0, "\(geometry)") }
            let bytes = parameters.encoded()
            require(UblkParameters(decoding: bytes).encoded() == bytes, "\(geometry) is not told as it is")
        }
    }
}
