import Glibc
import KernelABI
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("What follows from the kernel's answer to a control command")
struct ControlVerdictTests {
    /// All errnos of Linux, and one unknown errno.
    static let errnos = [Int32](1...134)

    static let operations: [UblkControlOperation] = (0...255).compactMap { UblkControlOperation(rawValue: $0) }

    /// Written by hand: command, errno, verdict. Other errnos are in `otherwise`.
    static let table: [UblkControlOperation: [Int32: ControlVerdict]] = [
        .getQueueAffinity: questions, .getDeviceInfo: questions, .getDeviceInfo2: questions, .getParameters: questions,
        .getFeatures: questions,
        .addDevice: [EEXIST: .taken, EINTR: .unknown, ETIMEDOUT: .unknown],
        .setParameters: [ENODEV: .gone, EINTR: .unknown, ETIMEDOUT: .unknown],
        .updateSize: [ENODEV: .gone, EINTR: .unknown, ETIMEDOUT: .unknown],
        .startDevice: [ENODEV: .gone, EINTR: .unknown, ETIMEDOUT: .unknown],
        .endUserRecovery: [ENODEV: .gone, EINTR: .unknown, ETIMEDOUT: .unknown],
        .startUserRecovery: [
            ENODEV: .gone, EBUSY: .again, ENOMEM: .again, EAGAIN: .again, EOPNOTSUPP: .unsupported, EINTR: .unknown,
            ETIMEDOUT: .unknown,
        ],
        .tryStopDevice: [ENODEV: .gone, EBUSY: .again, EOPNOTSUPP: .unsupported, EINTR: .unknown, ETIMEDOUT: .unknown],
        .quiesceDevice: [ENODEV: .gone, EOPNOTSUPP: .unsupported, EINVAL: .unsupported],
        .stopDevice: [ENODEV: .gone, ETIMEDOUT: .unknown],
        .deleteDevice: [ENODEV: .gone, ENOENT: .gone, EOPNOTSUPP: .unsupported, ETIMEDOUT: .unknown],
        .deleteDeviceAsync: [ENODEV: .gone, ENOENT: .gone, EOPNOTSUPP: .unsupported, ETIMEDOUT: .unknown],
    ]

    private static let questions: [Int32: ControlVerdict] = [
        ENODEV: .gone, EOPNOTSUPP: .unsupported, EINTR: .again, EAGAIN: .again, EBUSY: .again, ENOMEM: .again,
        ETIMEDOUT: .again,
    ]

    private static func otherwise(_ operation: UblkControlOperation) -> ControlVerdict {
        switch operation {
        case .stopDevice, .deleteDevice, .deleteDeviceAsync: .again
        case .quiesceDevice: .unknown
        default: .refused
        }
    }

    @Test("is in the table for each command, each errno and a timeout", arguments: operations)
    func all(_ operation: UblkControlOperation) throws {
        let row = try #require(ControlVerdictTests.table[operation], "no row for \(operation)")
        for errno in ControlVerdictTests.errnos {
            let wanted = row[errno] ?? ControlVerdictTests.otherwise(operation)
            let verdict = ControlAnswer.result(-errno, []).verdict(on: operation)
            #expect(verdict == wanted, "\(operation) with \(SystemError.name(errno))")
            #expect(verdict != .done, "\(operation) with \(SystemError.name(errno))")
        }
        #expect(ControlAnswer.result(0, []).verdict(on: operation) == .done)
        #expect(ControlAnswer.result(1, []).verdict(on: operation) == .done)
        let late = ControlAnswer.timedOut.verdict(on: operation)
        #expect(late == (row[ETIMEDOUT] ?? ControlVerdictTests.otherwise(operation)))
        #expect([.again, .unknown].contains(late))
    }

    @Test("of a command that changes something is never given up: its caller hears what became of it")
    func heardOut() {
        // SET_PARAMS of a device that has no worker yet is undone with it.
        let others: [UblkControlOperation] = [
            .getQueueAffinity, .getDeviceInfo, .getDeviceInfo2, .getParameters, .getFeatures, .setParameters,
        ]
        for operation in ControlVerdictTests.operations {
            #expect(operation.mustBeHeardOut != others.contains(operation), "\(operation)")
        }
    }

    @Test("of ADD_DEV that nobody can tell is looked for: ours is deleted, another's is not", arguments: [true, false])
    func addUnknown(_ isOurs: Bool) throws {
        let host = try Host()
        host.kernel.failures[.addDevice] = EINTR
        host.kernel.beforeAnswer[.addDevice] = {
            let generation = host.broker.devices[0]?.info.generation ?? 0
            if isOurs {
                host.kernel.addDevice(0, generation: generation, state: .dead, pid: -1)
            } else {
                host.kernel.addForeignDevice(0)
            }
        }
        #expect(throws: (any Error).self) { try host.add().get() }
        #expect((host.kernel.devices[0] == nil) == isOurs)
        #expect(host.kernel.log.contains("deleteDeviceAsync 0") == isOurs)
        #expect(host.leftovers == [])
    }
}
