import KernelABI
import Testing

/// A C compiler produced every number here from linux/ublk_cmd.h of Linux 7.3; none comes from ubd's own code.
@Suite("The kernel's layouts")
struct LayoutTests {
    @Test("structures have the kernel's sizes")
    func sizes() {
        #expect(MemoryLayout<UblkControlCommand>.size == 32)
        #expect(MemoryLayout<UblkDeviceInfo>.size == 64)
        #expect(MemoryLayout<UblkIODescriptor>.size == 24)
        #expect(MemoryLayout<UblkIODescriptor>.stride == 24)
        #expect(UblkParameters.encodedBytes == 152)
        #expect(UblkIOCommand.payloadBytes == 16)
    }

    @Test("fields of a control command lie where the kernel looks for them")
    func controlCommand() {
        #expect(MemoryLayout<UblkControlCommand>.offset(of: \.deviceID) == 0)
        #expect(MemoryLayout<UblkControlCommand>.offset(of: \.queueID) == 4)
        #expect(MemoryLayout<UblkControlCommand>.offset(of: \.length) == 6)
        #expect(MemoryLayout<UblkControlCommand>.offset(of: \.address) == 8)
        #expect(MemoryLayout<UblkControlCommand>.offset(of: \.inlineData) == 16)
        #expect(MemoryLayout<UblkControlCommand>.offset(of: \.devicePathLength) == 24)
    }

    @Test("fields of the device information lie where the kernel puts them")
    func deviceInfo() {
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.queues) == 0)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.depth) == 2)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.state) == 4)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.maxIOBytes) == 8)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.deviceID) == 12)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.serverPID) == 16)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.flags) == 24)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.serverFlags) == 32)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.ownerUID) == 40)
        #expect(MemoryLayout<UblkDeviceInfo>.offset(of: \.ownerGID) == 44)
    }

    @Test("fields of a request descriptor lie where the kernel puts them")
    func descriptor() {
        #expect(MemoryLayout<UblkIODescriptor>.offset(of: \.operationAndFlags) == 0)
        #expect(MemoryLayout<UblkIODescriptor>.offset(of: \.sectors) == 4)
        #expect(MemoryLayout<UblkIODescriptor>.offset(of: \.startSector) == 8)
        #expect(MemoryLayout<UblkIODescriptor>.offset(of: \.address) == 16)
    }

    @Test(
        "control commands have the kernel's ioctl numbers",
        arguments: [
            (UblkControlOperation.addDevice, 0xc020_7504), (.deleteDevice, 0xc020_7505), (.startDevice, 0xc020_7506),
            (.stopDevice, 0xc020_7507), (.setParameters, 0xc020_7508), (.getParameters, 0x8020_7509),
            (.getFeatures, 0x8020_7513), (.getDeviceInfo2, 0x8020_7512), (.getDeviceInfo, 0x8020_7502),
            (.getQueueAffinity, 0x8020_7501), (.deleteDeviceAsync, 0x8020_7514), (.startUserRecovery, 0xc020_7510),
            (.endUserRecovery, 0xc020_7511), (.updateSize, 0xc020_7515), (.quiesceDevice, 0xc020_7516),
            (.tryStopDevice, 0xc020_7517),
        ] as [(UblkControlOperation, UInt32)])
    func controlNumbers(operation: UblkControlOperation, number: UInt32) {
        #expect(operation.ioctlEncoded == number)
    }

    @Test("queue commands have the kernel's ioctl numbers")
    func queueNumbers() {
        #expect(UblkIOCommand.fetch == 0xc010_7520)
        #expect(UblkIOCommand.commitAndFetch == 0xc010_7521)
    }

    @Test("only commands older than the ioctl encoding have a plain number")
    func legacyNumbers() {
        #expect(UblkControlOperation.getDeviceInfo.legacy == 0x02)
        #expect(UblkControlOperation.getDeviceInfo2.legacy == 0x12)
        #expect(UblkControlOperation.getFeatures.legacy == nil)
        #expect(UblkControlOperation.tryStopDevice.legacy == nil)
    }

    @Test("a queue command's payload packs queue, tag and result, negative ones too")
    func payload() {
        #expect(UblkIOCommand.payload(queue: 3, tag: 0x1234, result: 4096) == 0x0000_1000_1234_0003)
        #expect(UblkIOCommand.payload(queue: 1, tag: 2, result: -5) == 0xffff_fffb_0002_0001)
    }

    @Test("each queue's descriptors start after room for the deepest queue")
    func descriptorMapping() {
        // 4096 descriptors of 24 bytes are 98304 bytes: 24 pages of 4 KiB, but not a whole number of 64 KiB pages.
        #expect(UblkDescriptorMapping.offset(queue: 0, pageSize: 4096) == 0)
        #expect(UblkDescriptorMapping.offset(queue: 3, pageSize: 4096) == 3 * 98304)
        #expect(UblkDescriptorMapping.offset(queue: 1, pageSize: 65536) == 131072)
        #expect(UblkDescriptorMapping.length(depth: 1, pageSize: 4096) == 4096)
        #expect(UblkDescriptorMapping.length(depth: 128, pageSize: 4096) == 4096)
        #expect(UblkDescriptorMapping.length(depth: 256, pageSize: 4096) == 8192)
    }
}

@Suite("Request descriptors")
struct DescriptorTests {
    @Test("operation and flags share a word")
    func operationAndFlags() {
        let write = UblkIODescriptor(operationAndFlags: 1 | 1 << 13, sectors: 8, startSector: 0)
        #expect(write.operation == UblkIOOperation.write)
        #expect(write.forceUnitAccess)
        #expect(!write.mustNotUnmap)
        let zeroes = UblkIODescriptor(operationAndFlags: 5 | 1 << 15, sectors: 8, startSector: 0)
        #expect(zeroes.operation == UblkIOOperation.writeZeroes)
        #expect(!zeroes.forceUnitAccess)
        #expect(zeroes.mustNotUnmap)
    }
}
