"""Data for the video models."""

from .flow import FlowCache, FlowClips, WithFlow, optical_flow
from .folders import VideoList, hmdb51, ucf101, video_folder
from .generated import GeneratedTask
from .tasks import EventOrder, LimitedLifetimeDots, PathTracker
from .video_clips import CheckedVideos, TestClips, VideoClips, check_videos

__all__ = [
    "CheckedVideos",
    "EventOrder",
    "FlowCache",
    "FlowClips",
    "GeneratedTask",
    "LimitedLifetimeDots",
    "PathTracker",
    "TestClips",
    "VideoClips",
    "VideoList",
    "WithFlow",
    "check_videos",
    "hmdb51",
    "optical_flow",
    "ucf101",
    "video_folder",
]
