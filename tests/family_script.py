"""A script as DC/DM-derived code is written, against the published utils and networks: it knows nothing of ours.

python family_script.py DATA_PATH
"""

import argparse
import copy
import sys

import numpy as np
import torch
import torch.nn as nn
from networks import MLP, VGG11, VGG11BN, AlexNet, AlexNetBN, ConvNet, LeNet, ResNet18, ResNet18BN, ResNet18BN_AP
from utils import (
    DiffAugment,
    ParamDiffAug,
    TensorDataset,
    augment,
    epoch,
    evaluate_synset,
    get_daparam,
    get_dataset,
    get_eval_pool,
    get_loops,
    get_network,
    get_time,
    match_loss,
)


def main():
    args = argparse.Namespace(
        method="DSA", dataset="CIFAR10", model="ConvNetW32", ipc=1, eval_mode="S", num_eval=1, epoch_eval_train=3,
        lr_img=0.1, lr_net=0.01, batch_real=4, batch_train=16, dis_metric="ours", dsa_strategy="color_crop_flip",
    )  # fmt: skip
    args.data_path = sys.argv[1]
    args.outer_loop, args.inner_loop = get_loops(args.ipc)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.dsa_param = ParamDiffAug()
    args.dsa = args.method == "DSA"
    channel, im_size, num_classes, class_names, mean, std, dst_train, dst_test, testloader = get_dataset(
        args.dataset, args.data_path
    )
    model_eval_pool = get_eval_pool(args.eval_mode, args.model, args.model)

    images_all = torch.cat([torch.unsqueeze(dst_train[i][0], dim=0) for i in range(len(dst_train))], dim=0)
    labels_all = torch.tensor([dst_train[i][1] for i in range(len(dst_train))], dtype=torch.long)
    indices_class = [np.flatnonzero(labels_all.numpy() == c) for c in range(num_classes)]

    def get_images(c, n):
        return images_all[np.random.permutation(indices_class[c])[:n]].to(args.device)

    image_syn = torch.randn((num_classes * args.ipc, channel, *im_size), requires_grad=True, device=args.device)
    label_syn = torch.arange(num_classes, device=args.device)
    optimizer_img = torch.optim.SGD([image_syn], lr=args.lr_img, momentum=0.5)
    criterion = nn.CrossEntropyLoss().to(args.device)
    net = get_network(args.model, channel, num_classes, im_size).to(args.device)
    net.train()
    embed = net.module.embed if torch.cuda.device_count() > 1 else net.embed

    # one step of gradient matching ...
    loss = torch.tensor(0.0).to(args.device)
    for c in range(num_classes):
        seed = int(np.random.randint(100000))
        real = DiffAugment(get_images(c, args.batch_real), args.dsa_strategy, seed=seed, param=args.dsa_param)
        syn = DiffAugment(image_syn[c : c + 1], args.dsa_strategy, seed=seed, param=args.dsa_param)
        label = torch.full((real.shape[0],), c, device=args.device)
        gw_real = [g.detach() for g in torch.autograd.grad(criterion(net(real), label), list(net.parameters()))]
        gw_syn = torch.autograd.grad(criterion(net(syn), label[:1]), list(net.parameters()), create_graph=True)
        for args.dis_metric in ("mse", "cos", "ours"):
            distance = match_loss(gw_syn, gw_real, args)
        # ... and of distribution matching
        loss += distance + torch.sum((torch.mean(embed(real), dim=0) - torch.mean(embed(syn), dim=0)) ** 2)
    optimizer_img.zero_grad()
    loss.backward()
    optimizer_img.step()

    trainloader = torch.utils.data.DataLoader(
        TensorDataset(image_syn, label_syn), batch_size=args.batch_train, shuffle=True, num_workers=0
    )
    optimizer_net = torch.optim.SGD(net.parameters(), lr=args.lr_net)
    epoch("train", trainloader, net, optimizer_net, criterion, args, aug=bool(args.dsa))

    for args.dsa in (True, False):
        args.dc_aug_param = get_daparam(args.dataset, args.model, "ConvNetBN", args.ipc)
        assert augment(image_syn.detach().clone(), args.dc_aug_param, device=args.device).shape == image_syn.shape
        for it_eval, model_eval in enumerate(model_eval_pool):
            net_eval = get_network(model_eval, channel, num_classes, im_size).to(args.device)
            images, labels = copy.deepcopy(image_syn.detach()), copy.deepcopy(label_syn.detach())
            _, acc_train, acc_test = evaluate_synset(it_eval, net_eval, images, labels, testloader, args)
            assert 0 <= acc_train <= 1 and 0 <= acc_test <= 1
    print(f"{get_time()} loss {loss.item():.3f}, accuracy {acc_test:.3f}, classes {len(class_names)}")


if __name__ == "__main__":
    main()
